"""Settings: one frozen table, read from the environment (`FLUX_…`) or a TOML file, and from nowhere else.

No other file of the project reads the environment. The README's settings table lists every field (a test keeps it so).
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import DirectoryPath, Field, FilePath, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipelines.depth_catalogue import DEFAULT_ESTIMATOR, find_estimator
from pipelines.memory.plans import RECIPES

DATABASE_NAME = "jobs.sqlite3"
"""The job database's file in the data folder."""

Names = Annotated[tuple[str, ...], NoDecode]
"""A list that the environment gives as text separated by commas, and TOML as an array."""


class SettingsFileError(ValueError):
    """The settings file cannot be used. The text names it."""


class Settings(BaseSettings):
    """Everything an operator can set. Money is in USD, sizes in bytes, times in seconds."""

    # Refused values may be keys, so no error repeats them.
    model_config = SettingsConfigDict(env_prefix="FLUX_", frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; another than loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path("data"), description="Folder of the job database, uploaded and generated pictures.")
    weights_dir: Path | None = Field(None, description="Folder of models: diffusers' folders, single files.")
    demo: bool = Field(False, description="Use the small built-in demo weights instead of real ones.")
    prompt_upsampler: DirectoryPath | None = Field(
        None, description="Folder of a language model for rewriting prompts."
    )
    lora_dir: DirectoryPath | None = Field(None, description="Folder of LoRA files that requests may name.")
    depth_lora: FilePath | None = Field(
        None,
        description="File of FLUX.1-Depth-dev-lora, which serves depth from flux-dev; by default the pulled one.",
    )
    depth_lora_scale: float = Field(0.85, gt=0, le=2, description="Scale of that LoRA; 0.85 is Black Forest Labs' own.")
    metadata: bool = Field(True, description="Write into each picture how it was made (prompt, seed, settings).")
    device: str = Field("auto", description="Where to compute: auto, cuda, cuda:1, mps, cpu.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision; auto is bfloat16 on a card and float32 on the CPU."
    )
    memory_plan: str = Field(
        "auto", description="How the models fit the card; auto chooses, a name forces (table in the README)."
    )
    memory_limit_bytes: int | None = Field(
        None, gt=0, description="Device memory that the server may take; without it, all that is free at its start."
    )
    fast_tiers: Literal["auto", "on", "off"] = Field(
        "auto", description="Offer the tiers fast and turbo (fp8); auto where the card has units for fp8 and room."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile the transformers' blocks and the decoder before the server is ready; auto on a CUDA card.",
    )
    attention: Literal["auto", "native"] = Field(
        "auto", description="Attention kernel: auto takes the best that the card has, native what torch picks."
    )
    prepare_ahead: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Prepare the next job's text, depth map and latents while one is drawn; auto on a CUDA card. Needs "
        "a plan whose encoders stay, and room.",
    )
    batching: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Draw small pictures that wait together in one batch; auto in tier fast on a card, on in all but "
        "turbo.",
    )
    depth_estimator: str = Field(
        DEFAULT_ESTIMATOR, description="What makes depth maps of photos; a name that is unknown lists all there are."
    )
    depth_map_mode: Literal["auto", "bfl-raw", "minmax"] = Field(
        "auto", description="How its output becomes a map: as published (bfl-raw) or stretched; auto is its own way."
    )

    api_keys: Names = Field((), description="Keys that are let in, separated by commas. Without any, everyone is.")
    allow_bearer: bool = Field(True, description="Take the key from `Authorization: Bearer` too.")
    credits: dict[str, float] = Field(default_factory=dict, description="Budget in USD per key; others have no limit.")
    unlimited_balance: float = Field(1_000_000.0, description="Balance in USD shown to a key without a budget.")
    prices: dict[str, float] = Field(default_factory=dict, description="Price in USD per image and slug.")
    no_credits_status_v2: Literal[402, 406] = Field(406, description="HTTP status of a v2 call that cannot be paid.")
    admin: bool = Field(
        True, description="Let `flux-server jobs` cancel and retry, by a secret file in the data folder."
    )

    public_url: str | None = Field(None, description="Base of all URLs in replies; else the request's own host.")
    trusted_proxies: Names = Field((), description="Addresses or networks whose X-Forwarded-* headers are believed.")
    flux_dev_reply: Literal["json", "image"] = Field("json", description="What v1 flux-dev answers by default.")

    queue_limit: int = Field(10_000, ge=1, description="Jobs that may wait; one more is refused with 429.")
    queued_per_key: int | None = Field(
        None, ge=1, description="Of these, how many may be one key's; no limit if unset."
    )
    rate_per_minute: float | None = Field(
        None, gt=0, description="Submissions and uploads per minute and key; more get 429. No limit if unset."
    )
    rate_burst: int = Field(10, ge=1, description="How many of them may come at once before the rate counts.")
    wait_limit_s: float = Field(600.0, gt=0, description="Longest time that a v1 call waits before 504.")
    result_ttl_s: float = Field(3600.0, gt=0, description="Time from submission after which a request is forgotten.")
    file_ttl_s: float = Field(7 * 86400.0, gt=0, description="Time for which generated and uploaded files are kept.")
    load_limit_s: float = Field(1800.0, gt=0, description="Longest time that loading the models may take.")
    queue_ttl_s: float | None = Field(
        None, gt=0, description="Longest time that a job may wait in the queue before it fails; no limit if unset."
    )
    run_limit_s: float | None = Field(
        None, gt=0, description="Longest time that a job may run before it is stopped and fails; no limit if unset."
    )
    step_limit_s: float | None = Field(
        None,
        gt=0,
        description="Longest time without a step before the worker is replaced; else the larger of 30 s and 20 × the "
        "median step.",
    )
    spare_worker: bool = Field(
        True, description="Keep a second process with the libraries loaded, so that a dead worker is replaced faster."
    )
    fault_switches: bool = Field(
        False,
        description="For tests of this server, with demo weights only: a prompt may ask for a fault of the worker.",
    )
    drain_limit_s: float = Field(30.0, ge=0, description="Time that a running job gets to finish at shutdown.")

    max_body_bytes: int = Field(32 * 1024 * 1024, gt=0, description="Largest request body.")
    max_picture_bytes: int = Field(20 * 1024 * 1024, gt=0, description="Largest control image file.")
    max_picture_pixels: int = Field(16_777_216, gt=0, le=16_777_216, description="Most pixels of a control image.")
    body_limit_s: float = Field(30.0, gt=0, description="Time that a request's body may take to arrive.")
    head_limit_s: float = Field(30.0, gt=0, description="Time that a request's head may take, and an idle connection.")
    max_connections: int = Field(512, ge=1, description="Connections open at once; one more is refused with 503.")
    min_free_bytes: int = Field(2 * 1024**3, ge=0, description="Disk space below which new work is refused.")

    fetch_urls: bool = Field(True, description="Fetch control images that are given as a URL.")
    fetch_hosts: Names = Field(
        (), description="Only these hosts, exact or `*.example.org`; empty means any public one."
    )
    fetch_private_hosts: Names = Field((), description="Hosts, or host:port, that may be fetched although private.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log lines.")
    log_prompts: bool = Field(False, description="Log prompts as they are rather than by length and hash.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then the TOML file that FLUX_CONFIG names (`flux-server.toml` by default)."""
        file = _config_file()
        try:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)
        except (OSError, ValueError) as error:
            # The parser's words may hold a piece of the file, and with it of a key.
            raise SettingsFileError(f"{file} cannot be read as TOML ({type(error).__name__})") from error

    @field_validator("api_keys", "trusted_proxies", "fetch_hosts", "fetch_private_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError("should be a list of texts, or one text with commas")
        return [part.strip() for part in parts if part.strip()]

    @field_validator("credits", "prices", mode="before")
    @classmethod
    def _check_amounts(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not all(_is_amount(amount) for amount in value.values()):
            raise ValueError("should give each name an amount in USD, at least 0")
        return value

    @field_validator("no_credits_status_v2", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """The environment gives text, which a Literal of numbers does not take."""
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)
        return value

    @field_validator("memory_plan")
    @classmethod
    def _check_memory_plan(cls, value: str) -> str:
        names = ("auto", *(recipe.name for recipe in RECIPES))
        if value not in names:
            raise ValueError(f"should be one of {', '.join(names)}")
        return value

    @field_validator("depth_estimator")
    @classmethod
    def _check_depth_estimator(cls, value: str) -> str:
        return find_estimator(value).name

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_exposure(self) -> Settings:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"refusing to listen on {self.host} without an API key: anyone who can reach this machine could use "
                "the GPU. Set FLUX_API_KEYS=SG_… (make one with `openssl rand -hex 8`), or listen on 127.0.0.1."
            )
        return self

    @model_validator(mode="after")
    def _check_times(self) -> Settings:
        if self.file_ttl_s < self.result_ttl_s:
            raise ValueError(
                f"file_ttl_s ({self.file_ttl_s:g}) is shorter than result_ttl_s ({self.result_ttl_s:g}): requests would"
                " name pictures that are gone. Make file_ttl_s at least as long."
            )
        return self

    @model_validator(mode="after")
    def _check_credits(self) -> Settings:
        unknown = set(self.credits) - set(self.api_keys)
        if unknown:
            raise ValueError(f"credits name {len(unknown)} key(s) that are not among api_keys")
        return self


def _is_amount(value: Any) -> bool:
    try:
        return 0 <= float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def environment_without_settings() -> dict[str, str]:
    """The environment for a child process that shall run with default settings: everything but FLUX_…."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}


def _config_file() -> Path:
    """The TOML file. Raises SettingsFileError when the one that was asked for is not there."""
    named = os.environ.get("FLUX_CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingsFileError(f"FLUX_CONFIG names {named}, which is not there")
    return Path(named or "flux-server.toml")
