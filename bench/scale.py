"""How much is measured: in full, quickly, or until a leak would show."""

from dataclasses import dataclass

from panoramic.preprocess import FULL_INPUT_SIZE


@dataclass(frozen=True)
class Scale:
    """Sizes and repetitions of everything.

    Attributes:
        networks: What jobs are run with. The last is also what the predecessor and the explanations are compared on,
            and what two nodes run.
        picture_px: (height, width) of the radiograph.
        input_size: (height, width) of the networks' input.
        repetitions: Of what takes a second or less.
        cold_starts: How often a node is started for its first job.
        warm_jobs: Jobs one after another through a warm node.
        waiting: With so many jobs waiting throughput is measured.
        waiting_repetitions: How often each time.
        batch_sizes: Of the raw forward pass.
        node_jobs: Jobs that wait for one node, and then for two.
        whole_reference: Run the predecessor's rolling ball on the whole radiograph, and not on a strip of it.
        queue_jobs: Jobs through a node whose engine does nothing, all waiting.
        queue_single_jobs: Jobs through it one after another.
        memory_network: What the memory of a node is measured with.
        memory_jobs: After how many jobs.
        memory_tiny: With the smallest pictures and inputs instead, so that there can be many.
        feed_pictures: Phantoms in an epoch of training.
        feed_epochs: Epochs.
    """

    networks: tuple[str, ...] = ("efficientnet-b0", "efficientnet-b7")
    picture_px: tuple[int, int] = (1270, 2800)
    input_size: tuple[int, int] = FULL_INPUT_SIZE
    repetitions: int = 7
    cold_starts: int = 3
    warm_jobs: int = 15
    waiting: tuple[int, ...] = (1, 2, 4, 8, 16)
    waiting_repetitions: int = 3
    batch_sizes: tuple[int, ...] = (1, 2, 4)
    node_jobs: int = 12
    whole_reference: bool = True
    queue_jobs: int = 3000
    queue_single_jobs: int = 300
    memory_network: str = "efficientnet-b7"
    memory_jobs: int = 200
    memory_tiny: bool = False
    feed_pictures: int = 12
    feed_epochs: int = 2

    @property
    def large_network(self) -> str:
        """The one for the comparisons that take long."""
        return self.networks[-1]


FULL = Scale()

QUICK = Scale(
    networks=("efficientnet-b0",),
    repetitions=3,
    cold_starts=1,
    warm_jobs=5,
    waiting=(1, 2, 4, 8),
    waiting_repetitions=1,
    batch_sizes=(1, 2),
    node_jobs=8,
    whole_reference=False,
    queue_jobs=500,
    queue_single_jobs=50,
    memory_network="efficientnet-b0",
    memory_jobs=20,
    feed_pictures=4,
    feed_epochs=1,
)
