"""Prepare every notebook for the site as nbdev does, up to the call of Quarto, and look at what came out.

As for the site, imports and exported cells are executed, and no others: a cell that mixes an import with other code
fails here when that code needs what an earlier cell made.
"""
from __future__ import annotations
import json, re, sys, yaml
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

def text_of(cell):
    "Markdown of a prepared cell: its own, or what `show_doc` printed"
    if cell['cell_type'] == 'markdown': return ''.join(cell['source'])
    return '\n'.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell.get('outputs', []))

def look_at_links(made):
    "Fail if a link that nbdev made from a name leads to a page or a heading that is not there"
    sys.path.insert(0, str(get_config().config_path/'tests'))
    from test_site import slug
    texts, pages = {}, {}
    for p in made.rglob('*.ipynb'):
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        texts[p] = '\n\n'.join(map(text_of, cells))
        texts[p] = re.sub(r'^(```|~~~).*?^\1', '', texts[p], flags=re.M | re.S)      # in code, site.lua removes links
        headings = re.findall(r'^#{1,6}\s+(.+)$', texts[p], re.M)
        front = yaml.safe_load(''.join(cells[0]['source']).strip().strip('-'))
        pages[(p.parent/front['output-file']).relative_to(made).as_posix()] = {slug(h.strip()) for h in headings}
    own = re.escape(get_config().doc_host + get_config().doc_baseurl + '/')
    dead = [f'{p.relative_to(made)}: {page}{anchor and "#" + anchor}' for p, text in texts.items()
            for page, anchor in set(re.findall(own + r'([\w./-]+\.html)#?([\w.-]*)', text))     # site.lua unlinks private names
            if page not in pages or anchor and anchor[0] != '_' and anchor not in pages[page]]
    assert not dead, 'dead links:\n' + '\n'.join(sorted(dead))

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

if __name__ == '__main__':
    made = prepared()
    look(made)
    look_at_links(made)
