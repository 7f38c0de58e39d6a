"""The notebooks in tutorials/: run from their first cell to their last, and shown as pages of the site.

``python docs/notebooks.py docs/tutorials/classification.ipynb`` runs one and keeps its outputs, as Jupyter would.
"""
import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

TUTORIALS = Path(__file__).parent / 'tutorials'


def environment() -> Dict[str, str]:
    """Variables of the environment in which ``python`` is this interpreter."""
    return {**os.environ, 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}


def _shell(line: str) -> None:
    """A line that begins with an exclamation mark; one that fails, in front of a pipe too, ends the run."""
    done = subprocess.run(['bash', '-o', 'pipefail', '-c', line], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment())
    print(done.stdout, end='')
    if done.returncode:
        raise RuntimeError(f'{line}\n{done.stdout[-3000:]}')


# a command goes on after a backslash
_COMMAND = re.compile(r'^!((?:.*\\\n)*.*)$', flags=re.MULTILINE)
_COMMANDS = re.compile(r'((?:^!(?:.*\\\n)*.*\n?)+)', flags=re.MULTILINE)


def _pieces(source: str) -> List[Tuple[str, str]]:
    """Code and commands of a cell in turn, as (code, '') or ('', commands)."""
    pieces = _COMMANDS.split(source)
    return [('', _COMMAND.sub(r'\1', piece)) if place % 2 else (piece, '')
            for place, piece in enumerate(pieces) if piece.strip()]


def _python(code: str) -> str:
    return _COMMAND.sub(lambda match: f'_shell({match[1]!r})', code)


def _run_cell(code: str, names: Dict[str, Any]) -> str:
    """What a cell prints, and the value of its last line."""
    tree = ast.parse(_python(code))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, 'cell', 'exec'), names)
        value = eval(compile(ast.Expression(last.value), 'cell', 'eval'), names) if last else None
        if value is not None:
            print(repr(value))
    # the same wherever the repository lies
    return said.getvalue().replace(f'{Path.cwd()}/', '')


def code_cells(notebook: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """Cells of code, in their order."""
    return (cell for cell in notebook['cells'] if cell['cell_type'] == 'code')


def run(path: Path) -> Dict[str, Any]:
    """A notebook with the outputs of a run in this process; the file is left as it is."""
    notebook = json.loads(path.read_text(encoding='utf-8'))
    names: Dict[str, Any] = {'__name__': '__main__', '_shell': _shell}
    for number, cell in enumerate(code_cells(notebook), 1):
        text = _run_cell(''.join(cell['source']), names)
        cell['execution_count'] = number
        cell['outputs'] = [{'name': 'stdout', 'output_type': 'stream', 'text': text.splitlines(True)}] if text else []
    return notebook


def page(notebook: Dict[str, Any], name: str) -> str:
    """A notebook as a page in Markdown, outputs behind the code."""
    parts: List[str] = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        parts += [f'```{"bash" if command else "python"}\n{(command or code).strip()}\n```'
                  for code, command in _pieces(source)]
        said = ''.join(line for output in cell['outputs'] for line in output.get('text', ())).rstrip()
        if said:
            parts.append(f'```text\n{said}\n```')
    parts.append(f'This page as a notebook: {{download}}`{name}.ipynb`')
    return '\n\n'.join(parts) + '\n'


def write_pages() -> None:
    """A page beside each notebook."""
    for path in TUTORIALS.glob('*.ipynb'):
        path.with_suffix('.md').write_text(page(json.loads(path.read_text(encoding='utf-8')), path.stem),
                                           encoding='utf-8')


if __name__ == '__main__':
    for argument in sys.argv[1:]:
        done = run(Path(argument))
        Path(argument).write_text(json.dumps(done, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
