"""Base of what parties sign and send: frozen, strict models with one canonical form."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self, get_origin

from pydantic import BaseModel, ConfigDict
from solders.keypair import Keypair

from torg_protocol.canonical import digest_of
from torg_protocol.ids import Digest
from torg_protocol.open_values import open_words
from torg_protocol.signing import sign_document, verify_document


class Wire(BaseModel):
    """A value that travels. Unknown keys are refused; readers of a newer protocol version negotiate it at hello."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class View(Wire):
    """What a marketplace answers. A newer one says more: members that this reader does not know are left out, words of enumerations that it does
    not know are kept as they are (`open_values`). What is asked, what is signed and what is hashed is a Wire, also inside of a view; there
    members are read whole or not at all."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        open_words(cls)

    def __iter__(self) -> NoReturn:
        """pydantic would give pairs of a field's name and its value, which nobody means who writes `for job in client.jobs()`."""
        fields = type(self).model_fields
        lists = [f".{name}" for name, field in fields.items() if get_origin(field.annotation) is tuple]
        where = f"go through its {', '.join(lists)}" if lists else "ask for its members by their names"
        more = "; next_cursor says whether there is another page" if "next_cursor" in fields else ""
        raise TypeError(f"a {type(self).__name__} is no list: {where}{more}")


class Document(Wire):
    """A value that is signed. `KIND` separates the signatures of different kinds."""

    KIND: ClassVar[str]

    @property
    def digest(self) -> Digest:
        return digest_of(self.wire())

    def sign(self, keypair: Keypair) -> str:
        return sign_document(keypair, self.KIND, self.wire())

    def is_signed_by(self, public_key: str, signature: str) -> bool:
        return verify_document(public_key, signature, self.KIND, self.wire())

    @classmethod
    def parse(cls, raw: object) -> Self:
        return cls.model_validate(raw)
