"""A repair of kombu 5.7's Redis transport: an acknowledgement that fails does not make a node deaf.

kombu forgets a message only after it has told Redis so. If the line breaks at that moment, Celery writes `Couldn't ack`
into its log and goes on, and kombu counts the message among those in hand for ever. With a prefetch of one that is the
last message the node ever takes, while its engine is ready and its connections are whole.
"""

from __future__ import annotations

from kombu.transport import redis, virtual


class ForgetfulQoS(redis.QoS):
    """Forgets an answered message whether Redis could be told or not; Redis hands it out once more, to no effect."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        try:
            redis.QoS.ack(self, delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or throw it away."""
        try:
            redis.QoS.reject(self, delivery_tag, requeue=requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)


def repair_acknowledgement() -> None:
    """Have this process's Redis channels use `ForgetfulQoS`."""
    redis.Channel.QoS = ForgetfulQoS
