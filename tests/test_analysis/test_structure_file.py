"""Checkpoints and JSON files are read for what they tell about a structure."""
import pytest
import torch

from mmdyrep.analysis.structure_file import natural, read_structure
from mmdyrep.fileio import write_json

NESTED = 'stem.branches.1x1_kxk.conv'


def test_a_checkpoint_tells_branches_importances_and_kernels(checkpoint, net):
    found = read_structure(checkpoint)
    assert found.ops == net.structure['ops']
    assert list(found.ops) == ['stem', NESTED, 'deep']
    assert found.importance['stem'] == pytest.approx({'1x1': 0.5, '1x1_kxk': 0.25, '1xk': 0.05})
    assert found.importance[NESTED] == pytest.approx({'1x1_avg': 0.01}, rel=1e-3)
    assert found.kernels == {'stem': (7, 7), NESTED: (7, 7), 'deep': (3, 3)}
    # a depthwise op has an average without 1x1 in front; the stem itself has no average
    assert 'deep' in found.without_conv1 and NESTED not in found.without_conv1
    assert found.waiting == ['body'] and found.removed == {'deep': ['1x1']}
    assert found.order == ['stem', 'body', 'deep']
    assert found.nested_in('stem', '1x1_kxk') == NESTED and found.nested_in('stem', 'kxk') is None


def test_a_bare_state_dict_tells_the_same(checkpoint, net, tmp_path):
    torch.save(net.state_dict(), tmp_path / 'bare.pth')
    bare, whole = read_structure(tmp_path / 'bare.pth'), read_structure(checkpoint)
    assert (bare.ops, bare.importance, bare.kernels) == (whole.ops, whole.importance, whole.kernels)
    assert not bare.waiting and not bare.removed


def test_kernels_are_found_below_nested_originals(net, tmp_path):
    net.expand('stem.branches.kxk.conv', ['1x1'])
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    found = read_structure(tmp_path / 'net.pth')
    assert found.kernels['stem'] == found.kernels['stem.branches.kxk.conv'] == (7, 7)
    assert list(found.ops) == ['stem', 'stem.branches.kxk.conv', NESTED, 'deep']


def test_a_structure_of_a_run_takes_what_the_history_beside_it_knew_then(net, tmp_path):
    write_json(tmp_path / 'structure_2.json', net.structure)
    entries = [{'epoch': epoch, 'iter': 10 * epoch, 'scores': scores, 'unscored': [], 'grown': [], 'cut': cut}
               for epoch, scores, cut in ((1, [['body', 1.0], ['deep', 2.0]], []),
                                          (2, [['body', 1.0], ['x.10', 1.0], ['x.9', 1.0]], []),
                                          (3, [], [{'op': 'stem', 'branches': ['kx1']}]))]
    write_json(tmp_path / 'history.json', {'settings': {'by_epoch': True}, 'updates': entries})
    found = read_structure(tmp_path / 'structure_2.json')
    assert found.waiting == ['body', 'x.9', 'x.10'] and not found.removed
    assert found.order == ['body', 'deep', 'stem', 'x.9', 'x.10']
    assert not found.importance and not found.kernels
    write_json(tmp_path / 'mine.json', net.structure)
    assert read_structure(tmp_path / 'mine.json').waiting == []


def test_a_weight_that_is_no_kernel_is_named(net, tmp_path):
    state = dict(net.state_dict())
    key = 'deep.branches.kxk.conv.weight'
    torch.save({**state, key: state[key][0]}, tmp_path / 'net.pth')
    with pytest.raises(ValueError, match=rf'net\.pth: {key} is of shape \(1, 3, 3\), which no 2D convolution has'):
        read_structure(tmp_path / 'net.pth')


def test_plain_networks_are_refused(net, tmp_path):
    torch.save(net.to_plain().state_dict(), tmp_path / 'plain.pth')
    write_json(tmp_path / 'plain.json', {'version': 1, 'ops': {}})
    for name in ('plain.pth', 'plain.json'):
        with pytest.raises(ValueError, match='has no blocks'):
            read_structure(tmp_path / name)


@pytest.mark.parametrize(('value', 'message'), [
    ([], 'is no structure'), ({'version': 1}, 'is no structure'), ({'updates': []}, 'plot_history.py'),
    ({'version': 99, 'ops': {'a': ['kxk', '1x1']}}, 'version 99'), ({'version': 1, 'ops': {'a': ['1x1']}}, 'a has'),
    ({'version': 1, 'ops': {'a': ['kxk', 'new']}}, "'new'"),
    ({'version': 1, 'ops': {'a': ['kxk', '1x1'], 'a.branches.1x1_kxk.conv': ['kxk', '1x1']}}, '1x1_kxk.conv lies in'),
])
def test_wrong_json_is_refused_with_what_is_wrong(value, message, tmp_path):
    write_json(tmp_path / 's.json', value)
    with pytest.raises(ValueError, match=message):
        read_structure(tmp_path / 's.json')


def test_broken_and_missing_files_are_named(tmp_path):
    (tmp_path / 'broken.pth').write_bytes(b'PK no')
    (tmp_path / 'broken.json').write_text('{')
    for name in ('broken.pth', 'broken.json'):
        with pytest.raises(ValueError, match=name):
            read_structure(tmp_path / name)
    for name in ('none.pth', 'none.json'):
        with pytest.raises(FileNotFoundError, match=name):
            read_structure(tmp_path / name)


def test_a_state_dict_with_a_part_of_a_block_is_refused(net, tmp_path):
    state = net.state_dict()
    del state['stem.branches.kxk.conv.weight']
    torch.save(state, tmp_path / 'part.pth')
    with pytest.raises(ValueError, match='stem.branches.kxk.conv.weight'):
        read_structure(tmp_path / 'part.pth')


def test_names_sort_by_number():
    assert sorted(['f.10', 'f.9', 'conv', 'f.9.1'], key=natural) == ['conv', 'f.9', 'f.9.1', 'f.10']
