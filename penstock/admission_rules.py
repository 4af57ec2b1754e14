"""The rules for admission as operators see and change them: classes, tenants, bounds."""

from typing import Final

from actors.admission_file import admission_of, parsed
from cluster.admission_rules import put_rules, rules_history, rules_in_force
from cluster.config import Settings
from cluster.store import Store
from penstock.admission_views import AdmissionAnswer, AdmissionView, admission_view, says
from penstock.dependencies import operator
from penstock.errors import ClientError, InvalidText

LONGEST_REASON: Final = 1000


class NoSuchRules(ClientError):
    """No rules of this version were in force lately."""

    def __init__(self, version: str, known: list[str]) -> None:
        there_are = ", ".join(dict.fromkeys(known)) if known else "none: nobody has set any"
        super().__init__(f"there are no rules for admission {version!r} in the history; versions: {there_are}")
        self.version = version


class AdmissionCalls:
    """What a client can ask and change of the rules for admission."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def admission(self, version: str | None = None) -> AdmissionView:
        """The rules for admission in force, or some that were before.

        Args:
            version: of rules in the history, or how it begins; by default those in force.

        Raises:
            NoSuchRules: there are none of this version, or several begin so.
        """
        if version is None:
            return admission_view(await rules_in_force(self.store))
        history = await self.admission_history()
        found = [each for each in history if each.version.startswith(version)] if version else []
        if len({each.version for each in found}) != 1:
            raise NoSuchRules(version, [each.version for each in history])
        return found[0]

    async def admission_history(self) -> list[AdmissionView]:
        """The rules that were set lately, the newest, which are in force, first; 50 at most."""
        records = await rules_history(self.store)
        return [admission_view(record, in_force=place == 0) for place, record in enumerate(records)]

    async def set_admission(
        self, text: str, *, place: str = "admission", by: str | None = None, why: str = ""
    ) -> AdmissionAnswer:
        """Puts rules for admission in force: for jobs that come from now on, and for what is queued.

        Args:
            text: YAML, see docs/admission.md; an empty one brings the defaults back.
            place: its name in errors.
            by: who wants it; by default the user and machine.
            why: the reason, for everybody who looks.

        Raises:
            DefinitionError: they cannot be used; nothing was changed. The text has all that is wrong, with lines.
            InvalidText: the reason is too long.
        """
        if len(why) > LONGEST_REASON:
            raise InvalidText(f"the reason has {len(why):,} characters, at most {LONGEST_REASON:,} are kept")
        definition = parsed(text, place).checked()
        who = operator() if by is None else by
        put = await put_rules(self.store, definition.version, text, by=who, why=why)
        view = admission_view(await rules_in_force(self.store))
        return AdmissionAnswer(rules=view, changed=put.word == "SET", dry_run=definition.dry_run, says=says(definition))


def put_given_rules(settings: Settings) -> None:
    """Puts the rules that a deployment was given in force: naming a file at `penstock up` is somebody's decision, and
    takes the place of whatever was in force before. Without one, what was in force stays.

    Raises:
        DefinitionError: they cannot be used.
    """
    given = admission_of(settings)
    if given is None:
        return
    from penstock.sync_client import SyncClient  # which imports this module

    with SyncClient(settings=settings) as client:
        client.set_admission(given.text, place=given.place, why="given to the deployment")
