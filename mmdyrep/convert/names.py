"""Names of other networks' modules in those of OpenMMLab."""
import re
from typing import Callable, Dict, Iterable, List, Sequence, Tuple, Union

Rule = Tuple[str, Union[str, Callable[[re.Match], str]]]

# blocks of MobileNet V1 in each of our stages
_MOBILE_STAGES = (1, 2, 2, 6, 2)


def _mobile(match: re.Match) -> str:
    index = int(match[1])
    for stage, blocks in enumerate(_MOBILE_STAGES):
        if index < blocks:
            return f'backbone.stages.{stage}.{index}.{match[2]}.{match[3] or "conv"}'
        index -= blocks
    return match[0]


def _resnet(match: re.Match) -> str:
    part = {'conv': f'conv{match[3]}', 'bn': f'bn{match[3]}'}[match[4] or 'conv']
    return f'backbone.layer{match[1]}.{match[2]}.{part}'


def _shortcut(match: re.Match) -> str:
    return f'backbone.layer{match[1]}.{match[2]}.downsample.{0 if match[3] == "conv" else 1}'


# the first rule that matches the beginning of a name replaces it; what none matches stays
TABLES: Dict[str, Sequence[Rule]] = {
    'the same names': (),
    "torchvision's": ((r'fc(?=\.)', 'head.fc'), (r'(?=\w)', 'backbone.')),
    "DBB's ResNet": (
        (r'stage0\.conv1\.bn', 'backbone.bn1'), (r'stage0\.conv1(\.conv)?', 'backbone.conv1'),
        (r'stage(\d)\.(\d+)\.conv(\d)(?:\.(conv|bn)(?=\.))?', _resnet),
        (r'stage(\d)\.(\d+)\.shortcut\.(conv|bn)', _shortcut), (r'linear(?=\.)', 'head.fc')),
    "DBB's MobileNet": (
        (r'conv1\.bn(?=\.)', 'backbone.stem.bn'), (r'conv1(\.conv(?=\.))?', 'backbone.stem.conv'),
        (r'stem\.(\d+)\.(depthwise|pointwise)(?:\.(conv|bn)(?=\.))?', _mobile), (r'linear(?=\.)', 'head.fc')),
    "RepVGG's": (
        (r'stage0(?=\.|$)', 'backbone.stem.branch_3x3.conv'),
        (r'stage(\d)\.(\d+)', r'backbone.stage_\1.\2.branch_3x3.conv'), (r'linear(?=\.)', 'head.fc')),
    "mmpretrain's RepVGG": ((r'(backbone\.(?:stem|stage_\d\.\d+))(?=\.weight|\.bias|$)', r'\1.branch_3x3.conv'), ),
}


def renamed(name: str, rules: Iterable[Rule]) -> str:
    """A name, its beginning replaced by the first rule that matches."""
    for pattern, new in rules:
        match = re.match(pattern, name)
        if match:
            return (new(match) if callable(new) else match.expand(new)) + name[match.end():]
    return name


def best_table(names: Iterable[str], wanted: Iterable[str]) -> Sequence[Rule]:
    """The table that turns most of these names into wanted ones.

    Args:
        names (Iterable[str]): Of blocks and tensors of a file.
        wanted (Iterable[str]): Of the ops and the tensors of a network.
    """
    names, wanted = list(names), set(wanted)
    return max(TABLES.values(), key=lambda rules: sum(renamed(name, rules) in wanted for name in names))


def parse_rules(texts: Iterable[str]) -> List[Rule]:
    """Rules from ``PATTERN=NEW``, a regular expression for the beginning of a name and what replaces it.

    Raises:
        ValueError: If one has no equals sign or is no regular expression.
    """
    rules: List[Rule] = []
    for text in texts:
        pattern, equals, new = text.partition('=')
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'--rename {text}: {pattern!r} is no regular expression ({error})') from error
        if not equals or not pattern:
            raise ValueError(f"--rename {text}: give PATTERN=NEW, as 'features=backbone.layers'")
        rules.append((pattern, new))
    return rules
