"The site without Quarto: every page has its head, every link leads somewhere, every figure can be read out, no page needs the network"
from __future__ import annotations
import json, posixpath, re
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PAGES = sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb'))
HOW_TO = {'tutorials/02_own_images.ipynb', 'tutorials/05_other_sources.ipynb'}   # for readers with images of their own
TUTORIALS = [p for p in PAGES if p.startswith('tutorials/') and p not in HOW_TO]

def cells(name): return json.loads((NBS/name).read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])

def prose(cells) -> str:
    "All markdown, without what stands in code"
    text = '\n\n'.join(source(c) for c in cells if c['cell_type'] == 'markdown')
    return re.sub(r'`[^`\n]*`', '`code`', re.sub(r'^(```|~~~).*?^\1', '', text, flags=re.M | re.S))

def headings(cells) -> list: # of (level, text)
    "All headings, in order"
    text = '\n\n'.join(source(c) for c in cells if c['cell_type'] == 'markdown')
    text = re.sub(r'^(```|~~~).*?^\1', '', text, flags=re.M | re.S)
    return [(len(m[1]), m[2].strip()) for m in re.finditer(r'^(#{1,6})\s+(.+)$', text, re.M)]

def slug(heading) -> str:
    "The anchor that Quarto, which is to say pandoc's `auto_identifiers`, gives a heading; or the one that it names itself"
    if own := re.search(r'\{[^}]*#([\w.-]+)[^}]*\}\s*$', heading): return own[1]
    text = re.sub(r'\{[^}]*\}\s*$', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading))
    text = re.sub(r'[^\w\s.-]', '', text.replace('`', '')).lower()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text.strip())) or 'section'

def anchors(cells) -> set:
    "What a link can lead to: headings, and the exported names, which nbdev gives headings of their own"
    code = '\n'.join(source(c) for c in cells if c['cell_type'] == 'code' and re.search(r'^#\|\s*export', source(c), re.M))
    names = re.findall(r'^(?:def|class)\s+([A-Za-z]\w*)', code, re.M)
    return {slug(h) for _, h in headings(cells)} | {n.lower() for n in names}

def links(text) -> list:
    "Targets of markdown links and pictures"
    return re.findall(r'\]\(\s*<?([^)\s>]+)', text)

def broken(name, target, pages) -> str: # '' if it is not
    "Why a link from the page `name` to `target` leads nowhere; `pages` has the cells of all"
    if re.match(r'(https?|mailto):', target): return ''
    page, _, anchor = target.partition('#')
    page = posixpath.normpath(posixpath.join(posixpath.dirname(name), page)) if page else name
    if not page.endswith('.ipynb'): return 'a link between pages is one to an .ipynb'
    if page not in pages: return 'there is no such notebook'
    return '' if not anchor or anchor in anchors(pages[page]) else 'there is no such heading'

def skipped(levels) -> list:
    "Levels of headings that are more than one below the one before"
    return [b for a, b in zip([0, *levels], levels) if b > a + 1]

def pictures(text) -> list:
    "Where pictures in markdown come from"
    return re.findall(r'!\[[^\]]*\]\(\s*<?([^)\s>]+)', text) + re.findall(r'<img[^>]*\bsrc=["\']([^"\']+)', text)

def directives(code) -> dict:
    "The `#| key: value` lines of a cell, read as Quarto reads them: as YAML"
    lines = re.findall(r'^#\|\s*(\S+:(?:\s.*)?)$', code, re.M)
    return yaml.safe_load('\n'.join(lines)) or {}

def front_matter(cells) -> dict:
    "What nbdev makes of the first cell of text: title, purpose, and `- key: value` lines, which are YAML"
    first = next(source(c) for c in cells if c['cell_type'] == 'markdown')
    found = yaml.safe_load('\n'.join(re.findall(r'^-\s+(\S.*:.*\S)\s*$', first, re.M))) or {}
    title, purpose = (re.search(rf'^{o}\s+(\S.*?)\s*$', first, re.M) for o in ('#', '>'))
    return found | dict(title=title and title[1], description=purpose and purpose[1])

def alts(cell) -> list:
    "Text alternatives of a cell: of its figures, its pictures in Markdown, and the pictures in its HTML outputs"
    html = ''.join(''.join(o.get('data', {}).get('text/html', '')) for o in cell.get('outputs', []))
    if cell['cell_type'] == 'markdown': return re.findall(r'!\[([^\]]*)\]', source(cell)) + re.findall(r'alt="([^"]*)"', source(cell))
    return [str(directives(source(cell)).get('fig-alt', '')), *re.findall(r'alt="([^"]*)"', html)]

def linked_pictures(text) -> list:
    "Pictures that are links: lightbox would open the picture in place of the link"
    return re.findall(r'\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)', text)

def doubled(text, names) -> list:
    "Links whose whole text is an exported name in backticks: nbdev makes it a link, too, and Markdown stays on the page"
    return [o for o in re.findall(r'\[`([\w.]+)(?:\(\))?`\]\(', text) if o in names]

def mute(cell) -> bool:
    "Does a cell show a figure that a screen reader cannot read out?"
    figure = any('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {}) for o in cell.get('outputs', []))
    return figure and not re.search(r'^#\|\s*fig-alt:\s*(?!["\']{2}\s*$)\S', source(cell), re.M)

# --- the checks find what they look for ---

@pytest.mark.parametrize('heading, anchor', [
    ('Who sees what', 'who-sees-what'), ('`mix`', 'mix'), ('Why not a loop?', 'why-not-a-loop'),
    ('3. The split, again', 'the-split-again'), ('1x1', 'x1'), ('Fewer than six seeds', 'fewer-than-six-seeds'),
    ('A [link](x.ipynb) in it', 'a-link-in-it'), ('GAN-train & CAS', 'gan-train-cas'), ('Named {#own}', 'own'), ('2026', 'section')])
def test_slug(heading, anchor): assert slug(heading) == anchor

def test_faults_are_found():
    md = lambda s: dict(cell_type='markdown', source=[s])
    pages = {'a.ipynb': [md('# A\n\n> a'), md('## Here and now\n\n`[no](link.ipynb)`')], 'b.ipynb': [md('# B')]}
    assert broken('a.ipynb', 'c.ipynb', pages) and broken('a.ipynb', 'b.html', pages)
    assert broken('b.ipynb', 'a.ipynb#there', pages) and broken('a.ipynb', '#there', pages)
    assert not any(broken('a.ipynb', o, pages) for o in ('b.ipynb', 'a.ipynb#here-and-now', '#here-and-now', 'https://x.org/a.html'))
    pages |= {'sub/c.ipynb': [md('# C')], 'sub/d.ipynb': [md('# D')]}
    assert broken('sub/c.ipynb', 'a.ipynb', pages) and broken('a.ipynb', 'c.ipynb', pages) and broken('sub/c.ipynb', '../a.ipynb#no', pages)
    assert not any(broken('sub/c.ipynb', o, pages) for o in ('d.ipynb', '../a.ipynb#here-and-now')) and not broken('a.ipynb', 'sub/c.ipynb', pages)
    assert links(prose(pages['a.ipynb'])) == []
    assert skipped([1, 2, 4, 2, 3]) == [4] and not skipped([1, 2, 3, 2])
    assert pictures('![a](https://x.org/a.png) <img src="b.png">') == ['https://x.org/a.png', 'b.png']
    assert linked_pictures('[![Open in Colab](https://x.org/badge.svg)](https://x.org)') and not linked_pictures('[Colab](https://x.org) ![a](b.png)')
    for bad in ('#| fig-cap: Left: a\nplot()', "#| fig-cap: how='add': a\nplot()", '#| fig-alt: "a\nplot()'):
        with pytest.raises(yaml.YAMLError): directives(bad)
    assert directives('#| export\n#| fig-cap: "Left: a"\n#| code-fold: true\nx') == {'fig-cap': 'Left: a', 'code-fold': True}
    with pytest.raises(yaml.YAMLError): front_matter([md('# A\n\n> a\n\n- order: 1: 2')])
    assert front_matter([md('# A\n\n> a\n\n- order: 1')]) == dict(title='A', description='a', order=1)
    html = dict(cell_type='code', source=['x'], outputs=[dict(data={'text/html': '<img alt="10% of it">'})])
    assert any('%' in o for o in alts(html)) and '%' in alts(dict(cell_type='code', source=['#| fig-alt: "5 % of"\nx']))[0]
    shows = lambda code: dict(cell_type='code', source=[code], outputs=[dict(data={'image/png': ''})])
    assert mute(shows('plot()')) and mute(shows('#| fig-alt: ""\nplot()')) and not mute(shows('#| fig-alt: "A line."\nplot()'))

# --- every page ---

@pytest.fixture(scope='module')
def pages(): return {name: cells(name) for name in PAGES}

def every_page(check):
    "One test of all pages, which names those that fail"
    def test(pages):
        wrong = []
        for name in pages:
            try: check(name, pages)
            except (AssertionError, yaml.YAMLError) as e: wrong.append(f'{name}: {e}')
        assert not wrong, '\n'.join(wrong)
    return test

@every_page
def test_page_has_title_and_purpose(name, pages):
    first = next(source(c) for c in pages[name] if c['cell_type'] == 'markdown')
    assert re.match(r'# \S.*\n+> \S', first), f'{name} lacks "# Title" and "> purpose" in its first cell of text'
    assert sum(level == 1 for level, _ in headings(pages[name])) == 1, f'{name} has more than one title'

@every_page
def test_directives_and_front_matter_are_yaml(name, pages):
    front_matter(pages[name])
    for c in pages[name]:
        if c['cell_type'] == 'code':
            for k, v in directives(source(c)).items(): assert isinstance(v, bool if k in ('eval', 'echo') else (bool, str, int)), (name, k, v)

def test_titles_and_descriptions_are_unique(pages):
    heads = {name: front_matter(c) for name, c in pages.items()}
    for key in ('title', 'description'):
        found = [h[key] for h in heads.values()]
        assert all(found) and len({o.lower() for o in found}) == len(found), sorted(o for o in found if found.count(o) > 1)

@every_page
def test_alt_texts_have_no_percent_sign(name, pages):
    "Quarto takes it for the start of an escape in an address, and warns"
    wrong = [o for c in pages[name] for o in alts(c) if '%' in o]
    assert not wrong, f'{name}: write "percent" in {wrong}'

@every_page
def test_pictures_are_no_links(name, pages): assert not linked_pictures(prose(pages[name]))

@every_page
def test_no_link_in_a_link(name, pages):
    from synthrob._modidx import d
    names = {k.split('.')[-1] for m in d['syms'].values() for k in m}
    text = '\n'.join(source(c) for c in pages[name] if c['cell_type'] == 'markdown')
    assert doubled('[`conclude`](a.ipynb)', names) and not doubled('[conclude](a.ipynb) and `conclude` [`--cores`](b.ipynb)', names)
    assert not (found := doubled(text, names)), f'{name}: write [{found[0]}](...) without backticks'

@every_page
def test_links_lead_somewhere(name, pages):
    wrong = [f'{o}: {why}' for o in links(prose(pages[name])) if (why := broken(name, o, pages))]
    assert not wrong, f'{name}: {"; ".join(wrong)}'

@every_page
def test_no_heading_level_is_skipped(name, pages):
    assert not skipped([level for level, _ in headings(pages[name])]), f'{name} skips a level of headings'

@every_page
def test_figures_have_alt_text(name, pages):
    wrong = [f"cell {i}: {source(c)[:60]!r}" for i, c in enumerate(pages[name]) if c['cell_type'] == 'code' and mute(c)]
    assert not wrong, f'{name} shows figures without #| fig-alt: {"; ".join(wrong)}'

@every_page
def test_no_picture_from_the_network(name, pages):
    far = [o for o in pictures(prose(pages[name])) if re.match(r'https?:|//', o)]
    assert not far, f'{name} fetches {far}'

@pytest.mark.parametrize('name', TUTORIALS)
def test_tutorial_opens_in_colab(name, pages):
    head = source(pages[name][1])
    assert f'](https://colab.research.google.com/github/synthrob/synthrob/blob/main/nbs/{name})' in head
    install = next(source(c) for c in pages[name] if c['cell_type'] == 'code')
    assert '#| eval: false' in install and 'pip install' in install, f'{name} does not install synthrob first'

def test_readme_leads_to_notebooks():
    found = [o.partition('#')[0] for o in links((ROOT/'README.md').read_text(encoding='utf-8')) if not re.match('https?:', o)]
    assert any(o.startswith('nbs/') for o in found)
    assert not [o for o in found if not (ROOT/o).is_file()]

def test_formulas_stay_tex_in_markdown():
    "Quarto's commonmark, without this extension, warns about each formula"
    assert 'tex_math_dollars' in yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['format']['commonmark']['variant']

def rules(css) -> dict: # selector -> its declarations, comments left out
    "The rules of a style sheet; one with several selectors counts for each"
    found = {}
    for names, body in re.findall(r'([^{}]+){([^{}]*)}', re.sub(r'/\*.*?\*/', '', css, flags=re.S)):
        for o in names.split(','): found[o.strip()] = found.get(o.strip(), '') + body
    return found

def unreadable(css) -> list:
    "What a reader of a page could not read: cut-off lines, tables wider than a phone, covered code, white chips in the dark"
    need = {'.cell-output pre': 'white-space: pre-wrap', '.cell-output pre > code': 'white-space: pre-wrap', 'main table.table': 'overflow-x: auto',
            '.cell-output-display': 'overflow-x: auto', 'pre.sourceCode': 'padding-right',
            'body.quarto-dark code:not(.sourceCode):not(pre > code)': 'background-color'}
    return [k for k, v in need.items() if v not in rules(css).get(k, '')]

def stems(text):
    "Words of five letters or more, without the s of a plural"
    return {re.sub('s$', '', w) for w in re.findall('[a-z]{5,}', text.lower())}

def repeated(description, paragraph) -> bool:
    "Does a first paragraph hold every word of the description above it?"
    return stems(description) <= stems(paragraph)

@pytest.mark.parametrize('name', PAGES)
def test_first_paragraph_does_not_repeat_the_description(name, pages):
    head, *more = [source(c) for c in pages[name] if c['cell_type'] == 'markdown']
    description = re.search('^> (.*)', head, re.M)[1]
    text = re.sub('^(# |> ).*', '', '\n\n'.join([head, *more]), flags=re.M).strip()
    assert not repeated(description, text.split('\n\n')[0])

def test_the_description_stands_apart():
    "A page of old said it twice, one paragraph after the other in the same type"
    assert repeated('From a folder of labelled images to a verdict on synthetic ones', 'You have a folder of labelled images: too few. '
                    'Would synthetic images help? This page goes from the folder to the verdict.')
    assert re.search(r'\.description \{[^}]*margin', (NBS/'styles.css').read_text(encoding='utf-8'))

def test_outputs_wrap_and_tables_scroll():
    css = (NBS/'styles.css').read_text(encoding='utf-8')
    assert not unreadable(css)
    assert unreadable(css.replace('pre-wrap', 'pre')) and unreadable(css.replace('overflow-x: auto', '')) and unreadable('')

def test_site_filter_is_in_use():
    "Headers stand above their columns and an index that only counts is gone: both are done by site.lua"
    config = (NBS/'_quarto.yml').read_text(encoding='utf-8')
    assert 'site.lua' in config and 'styles.css' in config and 'function Table(' in (NBS/'site.lua').read_text(encoding='utf-8')
