from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TextFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_FORMAT_UNSPECIFIED: _ClassVar[TextFormat]
    TEXT_FORMAT_PATH: _ClassVar[TextFormat]
    TEXT_FORMAT_FOLDER: _ClassVar[TextFormat]
TEXT_FORMAT_UNSPECIFIED: TextFormat
TEXT_FORMAT_PATH: TextFormat
TEXT_FORMAT_FOLDER: TextFormat
RULE_FIELD_NUMBER: _ClassVar[int]
rule: _descriptor.FieldDescriptor
KIND_FACTS_FIELD_NUMBER: _ClassVar[int]
kind_facts: _descriptor.FieldDescriptor

class FieldRule(_message.Message):
    __slots__ = ("required", "default_json", "default_words", "at_least", "at_most", "above", "below", "words", "pattern", "most_characters", "printable", "format", "least_items", "most_items", "limits", "hint", "meaning")
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_JSON_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WORDS_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    MOST_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    PRINTABLE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LEAST_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MOST_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    required: bool
    default_json: str
    default_words: str
    at_least: float
    at_most: float
    above: float
    below: float
    words: _containers.RepeatedScalarFieldContainer[str]
    pattern: str
    most_characters: int
    printable: bool
    format: TextFormat
    least_items: int
    most_items: int
    limits: str
    hint: str
    meaning: str
    def __init__(self, required: bool = ..., default_json: _Optional[str] = ..., default_words: _Optional[str] = ..., at_least: _Optional[float] = ..., at_most: _Optional[float] = ..., above: _Optional[float] = ..., below: _Optional[float] = ..., words: _Optional[_Iterable[str]] = ..., pattern: _Optional[str] = ..., most_characters: _Optional[int] = ..., printable: bool = ..., format: _Optional[_Union[TextFormat, str]] = ..., least_items: _Optional[int] = ..., most_items: _Optional[int] = ..., limits: _Optional[str] = ..., hint: _Optional[str] = ..., meaning: _Optional[str] = ...) -> None: ...

class KindFacts(_message.Message):
    __slots__ = ("description", "tasks", "least_image_side", "reads_files")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    LEAST_IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    READS_FILES_FIELD_NUMBER: _ClassVar[int]
    description: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    least_image_side: int
    reads_files: bool
    def __init__(self, description: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., least_image_side: _Optional[int] = ..., reads_files: bool = ...) -> None: ...
