import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, final, type_check_only

__all__ = [
    "Answer",
    "Chat",
    "Chosen",
    "Error",
    "Model",
    "Region",
    "ScoredChoice",
    "Stream",
    "__version__",
    "load",
]

__version__: str

class Error(Exception): ...

@type_check_only
class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@type_check_only
class _Array(Protocol):
    def __array__(self) -> Any: ...

@type_check_only
class _Rle(TypedDict):
    size: Sequence[int]
    counts: str | bytes | Sequence[int]

@type_check_only
class _SavedRegion(TypedDict):
    id: int
    box: list[float]
    origin: _Origin

@type_check_only
class _Round(TypedDict):
    question: str
    answer: str

@type_check_only
class _Transcript(TypedDict):
    image_size: list[int]
    regions: list[_SavedRegion]
    rounds: list[_Round]

_Pixels: TypeAlias = _ArrayInterface | _Array
_File: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
_Picture: TypeAlias = _File | _Pixels
_Mask: TypeAlias = _File | _Pixels | _Rle
_Numbers: TypeAlias = Iterable[SupportsFloat | SupportsIndex]
_Choices: TypeAlias = Iterable[str] | Iterable[tuple[str, str]] | Mapping[str, str]

_Coords: TypeAlias = Literal["pixel", "norm", "norm1000"]
_BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
_Zoom: TypeAlias = Literal["off", "auto"]
_Scoring: TypeAlias = Literal["all", "likely"]
_Origin: TypeAlias = Literal["given", "coordinates", "point", "polygon", "mask"]

def load(
    model: str | os.PathLike[str] | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    draft_model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: Literal["f32", "f16", "bf16"] | str = "f32",
) -> Model: ...

@final
class Model:
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> Literal["cpu", "cuda", "metal"]: ...
    @property
    def dtype(self) -> Literal["f32", "f16", "bf16"]: ...
    def chat(self, image: _Picture) -> Chat: ...
    def describe(
        self,
        image: _Picture,
        boxes: Iterable[_Numbers] | None = None,
        *,
        points: Iterable[_Numbers] | None = None,
        polygons: Iterable[Iterable[_Numbers]] | None = None,
        masks: Iterable[_Mask] | None = None,
        question: str = "What is <region1>?",
        coords: _Coords = "pixel",
        box_format: _BoxFormat = "xyxy",
        clip: bool = False,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        zoom: _Zoom = "off",
        draft: int | None = None,
        batch_bytes: int = 1073741824,
    ) -> list[Answer]: ...
    def choose(
        self,
        image: _Picture,
        boxes: Iterable[_Numbers] | None,
        choices: _Choices,
        *,
        points: Iterable[_Numbers] | None = None,
        polygons: Iterable[Iterable[_Numbers]] | None = None,
        masks: Iterable[_Mask] | None = None,
        question: str = "What is <region1>?",
        coords: _Coords = "pixel",
        box_format: _BoxFormat = "xyxy",
        clip: bool = False,
        scoring: _Scoring = "all",
        zoom: _Zoom = "off",
        batch_bytes: int = 1073741824,
    ) -> list[Chosen]: ...

@final
class Chat:
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def regions(self) -> list[Region]: ...
    def add_region(
        self, box: _Numbers, *, coords: _Coords = "pixel", box_format: _BoxFormat = "xyxy", clip: bool = False
    ) -> Region: ...
    def add_point(self, point: _Numbers, *, coords: _Coords = "pixel") -> Region: ...
    def add_polygon(
        self, corners: Iterable[_Numbers], *, coords: _Coords = "pixel", clip: bool = False
    ) -> Region: ...
    def add_mask(self, mask: _Mask) -> Region: ...
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        zoom: _Zoom = "off",
        draft: int | None = None,
    ) -> Answer: ...
    def stream(
        self,
        question: str,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        zoom: _Zoom = "off",
        draft: int | None = None,
    ) -> Stream: ...
    def choose(
        self, question: str, choices: _Choices, *, scoring: _Scoring = "all", zoom: _Zoom = "off"
    ) -> Chosen: ...
    def replace_answer(self, answer: str) -> None: ...
    def undo(self) -> Region | _Round | None: ...
    def clear(self) -> None: ...
    def transcript(self) -> _Transcript: ...

@final
class Stream:
    @property
    def answer(self) -> Answer | None: ...
    def close(self) -> None: ...
    def __iter__(self) -> Stream: ...
    def __next__(self) -> str: ...
    def __enter__(self) -> Stream: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class Region:
    @property
    def id(self) -> int: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...
    @property
    def origin(self) -> _Origin: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Answer:
    @property
    def text(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def regions(self) -> list[Region]: ...
    @property
    def probability(self) -> float | None: ...
    @property
    def mean_log_probability(self) -> float | None: ...
    @property
    def finish(self) -> Literal["stop", "eos", "length"]: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def reused_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def drafted_tokens(self) -> int: ...
    def text_if_sure(self, least: float) -> str: ...

@final
class Chosen:
    @property
    def text(self) -> str: ...
    @property
    def best(self) -> int: ...
    @property
    def probability(self) -> float: ...
    @property
    def likeness(self) -> float: ...
    @property
    def choices(self) -> list[ScoredChoice]: ...
    @property
    def question(self) -> str: ...
    @property
    def regions(self) -> list[Region]: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def reused_tokens(self) -> int: ...
    def text_if_sure(self, least: float) -> str: ...

@final
class ScoredChoice:
    @property
    def text(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def log_probability(self) -> float: ...
    @property
    def tokens(self) -> int: ...
    @property
    def complete(self) -> bool: ...
