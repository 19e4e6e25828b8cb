"""DataComp's 38 sets: pictures, classes and the metric that stands for each in its average.

Source: tasklist.yml of mlfoundations/datacomp at commit 4a8df19, row by row, none from memory; metrics as its eval_utils have them.
FairFace and UTKFace are the 39th and 40th of the list: they have no main metric there, and are in no average.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOP1, PER_CLASS, F1 = "top1", "mean_per_class", "macro_f1"
WORST_TOP1, WORST_TOP5 = "worst_group_top1", "worst_group_top5"
RECALL, JACCARD = "mean_r1", "jaccard_10_12"
METRICS = {
    TOP1: "accuracy",
    PER_CLASS: "mean per class",
    F1: "macro F1",
    WORST_TOP1: "accuracy, worst group",
    WORST_TOP5: "top-5, worst group",
    RECALL: "mean of both R@1",
    JACCARD: "Jaccard, 10 to 12 pictures",
}
"""How tables call them."""


@dataclass(frozen=True)
class Listed:
    """A row of the task list."""

    key: str
    """Its name there."""
    title: str
    """Its column in published tables."""
    pictures: int
    classes: int | None
    primary: str = TOP1
    group: int | None = None
    """Which integer of .npy is the group: WILDS' region, the income of Dollar Street, GeoDE's region."""

    @property
    def name(self) -> str:
        """As of `wds:NAME`."""
        return re.sub(r"^(fairness|retrieval|misc)/", "", self.key).replace("/", "-")

    @property
    def counts(self) -> tuple[int, None, int | None]:
        return self.pictures, None, self.classes


LISTED = (
    Listed("imagenet1k", "ImageNet 1k", 50_000, 1_000),
    Listed("vtab/caltech101", "Caltech-101", 6_085, 102, PER_CLASS),
    Listed("cifar10", "CIFAR-10", 10_000, 10),
    Listed("vtab/cifar100", "CIFAR-100", 10_000, 100),
    Listed("vtab/clevr_count_all", "CLEVR Counts", 15_000, 8),
    Listed("vtab/clevr_closest_object_distance", "CLEVR Distance", 15_000, 6),
    Listed("country211", "Country211", 21_100, 211),
    Listed("vtab/dtd", "Describable Textures", 1_880, 47),
    Listed("vtab/eurosat", "EuroSAT", 5_400, 10),
    Listed("fgvc_aircraft", "FGVC Aircraft", 3_333, 100, PER_CLASS),
    Listed("food101", "Food-101", 25_250, 101),
    Listed("gtsrb", "GTSRB", 12_630, 43),
    Listed("imagenet_sketch", "ImageNet Sketch", 50_889, 1_000),
    Listed("imagenetv2", "ImageNet v2", 10_000, 1_000),
    Listed("imagenet-a", "ImageNet-A", 7_500, 200),
    Listed("imagenet-o", "ImageNet-O", 2_000, 200),
    Listed("imagenet-r", "ImageNet-R", 30_000, 200),
    Listed("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711, 4),
    Listed("mnist", "MNIST", 10_000, 10),
    Listed("objectnet", "ObjectNet", 18_574, 113),
    Listed("vtab/flowers", "Oxford Flowers-102", 6_149, 102, PER_CLASS),
    Listed("vtab/pets", "Oxford-IIIT Pet", 3_669, 37, PER_CLASS),
    Listed("voc2007", "Pascal VOC 2007", 14_976, 20),
    Listed("vtab/pcam", "PatchCamelyon", 32_768, 2),
    Listed("renderedsst2", "Rendered SST2", 1_821, 2),
    Listed("vtab/resisc45", "RESISC45", 6_300, 45),
    Listed("cars", "Stanford Cars", 8_041, 196),
    Listed("stl10", "STL-10", 8_000, 10),
    Listed("sun397", "SUN397", 108_754, 397),
    Listed("vtab/svhn", "SVHN", 26_032, 10),
    Listed("retrieval/flickr_1k_test_image_text_retrieval", "Flickr", 1_000, None, RECALL),
    Listed("retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO", 5_000, None, RECALL),
    Listed("misc/winogavil", "WinoGAViL", 3_563, None, JACCARD),
    Listed("wilds/iwildcam", "iWildCam", 42_791, 182, F1),
    Listed("wilds/camelyon17", "Camelyon17", 85_054, 2),
    Listed("wilds/fmow", "FMoW", 22_108, 62, WORST_TOP1, group=0),
    Listed("fairness/dollar_street", "Dollar Street", 3_503, 58, WORST_TOP5, group=0),
    Listed("fairness/geode", "GeoDE", 12_488, 40, WORST_TOP1, group=0),
)
"""In the order of open_clip's published table."""


def known(name: str) -> Listed | None:
    """The row that `wds:NAME` is of."""
    wanted = re.sub(r"[-_. ]", "", name).lower()
    return next((row for row in LISTED if row.classes and re.sub(r"[-_. ]", "", row.name).lower() == wanted), None)
