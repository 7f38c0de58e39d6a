"""tools/dist_train.sh, dist_test.sh and slurm_train.sh as processes."""
import os
import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.processes import dist_train, free_port, launch, ranks_config
from tests.runs import needs_images, train

# stands for Slurm's: starts the tasks here, ends them all with the first that fails
SRUN = '''#!/usr/bin/env bash
printf '%s\\n' "$@" > "$RECORD"
tasks=1
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}
    shift
done
pids=()
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks SLURM_NODELIST=here "$@" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
'''
SCONTROL = '''#!/usr/bin/env bash
[ "$*" = "show hostname here" ] && printf 'localhost\\nanother\\n'
'''


def accuracy(output: str) -> float:
    return float(re.findall(r'accuracy/top1: ([\d.]+)', output)[-1])


@needs_images
@pytest.mark.slow
def test_training_and_testing_in_two_processes(tmp_path: Path) -> None:
    cfg = ranks_config()
    cfg.merge_from_dict(dict(test_dataloader=cfg.val_dataloader.to_dict(), test_evaluator=cfg.val_evaluator.to_dict(),
                             test_cfg=dict()))
    # flips draw random numbers, the ranks others than one process
    cfg.test_dataloader.dataset.pipeline = [dict(type='PackInputs')]
    folder = tmp_path / 'a run'
    done = dist_train(cfg, folder, '--cfg-options', 'train_cfg.max_epochs=1', 'note=seen')
    assert done.returncode == 0, done.stdout[-3000:]
    used = Config.fromfile(folder / 'a run.py')
    assert used.train_cfg.max_epochs == 1 and used.note == 'seen'
    checkpoint = folder / 'epoch_1.pth'
    assert checkpoint.exists() and not (folder / 'epoch_2.pth').exists()
    tested = launch('dist_test.sh', tmp_path / 'a run.py', checkpoint, 2, '--work-dir', tmp_path / 'test')
    assert tested.returncode == 0, tested.stdout[-3000:]
    alone = launch('dist_test.sh', tmp_path / 'a run.py', checkpoint, 1, '--work-dir', tmp_path / 'alone')
    assert accuracy(tested.stdout) == accuracy(alone.stdout)


@needs_images
@pytest.mark.slow
def test_slurm_script_passes_its_arguments_and_tasks_find_each_other(tmp_path: Path) -> None:
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name, content in dict(srun=SRUN, scontrol=SCONTROL).items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    cfg = ranks_config()
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'cfg.py')
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ['PATH']])
    env = dict(PATH=path, RECORD=str(tmp_path / 'arguments'), GPUS='2', GPUS_PER_NODE='0', CPUS_PER_TASK='1',
               SRUN_ARGS='--mem=1G --exclusive', PORT=str(free_port()))
    done = launch('slurm_train.sh', 'part', 'a job', tmp_path / 'cfg.py', tmp_path / 'a run', '--cfg-options',
                  'note=seen', env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'GPU number: 2' in done.stdout and Config.fromfile(tmp_path / 'a run' / 'cfg.py').note == 'seen'
    assert (tmp_path / 'a run' / 'epoch_1.pth').exists()
    arguments = (tmp_path / 'arguments').read_text().split('\n')
    assert arguments[:7] == ['--partition=part', '--job-name=a job', '--ntasks=2', '--cpus-per-task=1',
                             '--kill-on-bad-exit=1', '--mem=1G', '--exclusive']

    (tools / 'srun').write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    asked = launch('slurm_train.sh', 'part', 'job', 'cfg.py', 'run', env=dict(env, GPUS='4', GPUS_PER_NODE='8'))
    assert '--gres=gpu:4\n--ntasks-per-node=4\n' in asked.stdout


@pytest.mark.parametrize('script, arguments, wanted', [
    ('dist_train.sh', ['cfg.py'], 'CONFIG GPUS'), ('dist_test.sh', ['cfg.py', 'x.pth'], 'CONFIG CHECKPOINT GPUS'),
    ('slurm_train.sh', ['part', 'job', 'cfg.py'], 'PARTITION JOB_NAME CONFIG WORK_DIR')])
def test_missing_arguments_are_told(script: str, arguments: list, wanted: str) -> None:
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert 'usage: ' in done.stdout and wanted in done.stdout


def test_machines_and_ports_reach_the_launcher(tmp_path: Path) -> None:
    # a stand-in for the interpreter that tells what it was given; the script falls back to the first on the PATH
    (tmp_path / 'tools').mkdir()
    script = tmp_path / 'tools' / 'dist_train.sh'
    script.write_text((Path(__file__).parents[2] / 'tools' / 'dist_train.sh').read_text())
    (tmp_path / 'python').write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ['PATH']])
    done = launch(str(script), 'cfg.py', 4, '--resume', env=dict(
        PATH=path, NNODES='2', NODE_RANK='1', MASTER_ADDR='first', PORT='1234'))
    assert done.stdout.split() == [
        '-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1', '--master_addr=first', '--master_port=1234',
        '--nproc_per_node=4', str(tmp_path / 'tools' / 'train.py'), 'cfg.py', '--launcher', 'pytorch', '--resume']


@needs_images
@pytest.mark.slow
def test_an_error_of_every_rank_ends_the_launcher_with_its_message(tmp_path: Path) -> None:
    cfg = ranks_config(hook=dict(by_epoch=False))
    alone = train(cfg, tmp_path / 'alone')
    done = dist_train(cfg, tmp_path / 'run')
    for run in (alone, done):
        assert run.returncode == 1
        assert 'by_epoch=False does not fit EpochBasedTrainLoop' in run.stdout
