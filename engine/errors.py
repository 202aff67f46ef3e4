"""The engine's exceptions.

FlashgridError
├── SettingsError         a setting is unknown or has a bad value
├── StackError            a private backing service can't be started or stopped
├── InputError            a request from outside is malformed
├── GateUnavailable       the purchase did not reach the gate: nothing is reserved
├── OutcomeUnknown        a purchase or a new sale was sent to its store, and the answer is lost
├── LedgerUnavailable     PostgreSQL can't be reached or refuses to work
│   └── LedgerLocked      another session of PostgreSQL holds rows that were to be written
├── BusUnavailable        RabbitMQ can't be reached, or did not confirm
└── PaymentUnavailable    the payment gateway failed, or did not answer in time
"""


class FlashgridError(Exception):
    """An error that the engine raises on purpose. Its message is one line for the operator."""


class SettingsError(FlashgridError):
    """A setting is unknown or has a bad value."""


class StackError(FlashgridError):
    """A private backing service can't be started or stopped."""


class InputError(FlashgridError):
    """A request from outside is malformed: `field` is at fault, `status` is the HTTP answer."""

    def __init__(self, field: str, detail: str, status: int = 400) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail
        self.status = status


class GateUnavailable(FlashgridError):
    """The purchase did not reach the gate: nothing is reserved."""


class OutcomeUnknown(FlashgridError):
    """It was sent to its store, and the answer is lost: a purchase may be reserved, a new sale may open."""


class LedgerUnavailable(FlashgridError):
    """PostgreSQL can't be reached or refuses to work."""


class LedgerLocked(LedgerUnavailable):
    """Another session of PostgreSQL holds rows that were to be written."""


class BusUnavailable(FlashgridError):
    """RabbitMQ can't be reached, or did not confirm."""


class PaymentUnavailable(FlashgridError):
    """The payment gateway failed, or did not answer in time: what it charged is unknown."""
