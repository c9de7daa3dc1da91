"""Prepare every notebook for the site as nbdev does, up to the call of Quarto, and look at what came out.

As for the site, imports and exported cells are executed, and no others: a cell that mixes an import with other code
fails here when that code needs what an earlier cell made.
"""
from __future__ import annotations
import json, yaml
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

def prepared():
    "The folder that Quarto would render"
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()   # the function under the command
    return proc_nbs(n_workers=2, force=True)

def pages_of(contents):
    "The pages of a sidebar, whatever sections they are in"
    for o in contents:
        if isinstance(o, str): yield o
        elif 'contents' in o: yield from pages_of(o['contents'])
        else: yield o['href']

def look(made):
    "Fail unless every notebook in nbs/ became a page with a title, a purpose and a place in the sidebar of `made`"
    sidebar = list(pages_of(yaml.safe_load((made/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']))
    for p in sidebar: assert (made/p).is_file(), f'the sidebar has {p}, which is not there'
    assert len(set(sidebar)) == len(sidebar), 'a page is in the sidebar twice'
    nbs = get_config().nbs_path
    for p in sorted(nbs.rglob('*.ipynb')):
        name = p.relative_to(nbs).as_posix()
        head = json.loads((made/name).read_text(encoding='utf-8'))['cells'][0]
        front = yaml.safe_load(''.join(head['source']).strip().strip('-')) if head['cell_type'] == 'raw' else {}
        assert front.get('title') and front.get('description'), f'{name} lacks "# Title" and "> purpose" at its head'
        assert name in sidebar, f'{name} is not in the sidebar'
        print(front['output-file'].ljust(16), front['title'])
    site = yaml.safe_load((made/'_quarto.yml').read_text(encoding='utf-8'))
    for f in *site['metadata-files'], site['format']['html']['css']: assert (made/f).is_file(), f'{f} is not there'

if __name__ == '__main__': look(prepared())
