"""The names of all methods, for whoever lists or parses them: importing this loads no deep-learning runtime."""

EVOLVING = ("pretrain", "single-evolving", "peso", "l2", "orthogonal", "output-kl", "rank-kl")
CUMULATIVE = tuple(
    f"{family}-lora-{scope}{inherit}"
    for family in ("sum", "sd", "inf")
    for inherit in ("", "-inherit")
    for scope in ("all", "latest")
)
LORA_METHODS = (*EVOLVING, *CUMULATIVE)
TWO_TOWER = tuple(f"lightgcn-{kind}" for kind in ("pretrain", "finetune", "contrastive", "piw", "pisa"))
RANKERS = (*TWO_TOWER, "sasrec")
