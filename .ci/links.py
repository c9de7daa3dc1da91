"""The rendered site holds together: `links.py FOLDER` checks pages, anchors, pictures, styles and scripts, and each page's head."""
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

OWN = 'https://synthrob.github.io/synthrob/'     # nbdev's links to names, until Quarto makes them relative

class Page(HTMLParser):
    "What a page links to, and what in it can be linked to"
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        self.links |= {attrs[k] for k in ('href', 'src') if attrs.get(k)}

def broken(folder):
    "(page, link) for every link inside the site that leads nowhere"
    pages = {p.resolve(): Page(p) for p in folder.rglob('*.html')}
    if not pages: sys.exit(f'there is no page in {folder}')
    for path, page in pages.items():
        for link in sorted(page.links):
            to, anchor = urldefrag(link.replace(OWN, '/', 1) if link.startswith(OWN) else link)
            if urlsplit(to).scheme or to.startswith('//'): continue      # another site, or data
            target = (folder if to.startswith('/') else path.parent)/unquote(urlsplit(to).path).lstrip('/') if to else path
            target = (target/'index.html' if target.is_dir() else target).resolve()
            if not target.exists(): yield path, link
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors: yield path, link

def faults(folder):
    "(page, fault) for what a reader would see of the machinery, and for heads that say nothing"
    for path in folder.rglob('*.html'):
        html = path.read_text(encoding='utf-8')
        if len(re.findall('<h1', html)) != 1: yield path, 'not one H1'
        if not re.search('<meta name="description" content="[^"]', html): yield path, 'no description'
        if re.search(r'\]\((<[^>]*>)*https?:', html): yield path, 'a raw Markdown link'
        if '<th>epoch</th>' in html or '<progress' in html: yield path, 'a table of epochs'

if __name__ == '__main__':
    folder = Path(sys.argv[1]).resolve()
    bad = sorted(f'{p.relative_to(folder)}: {link}' for p, link in broken(folder))
    seen = sorted(f'{p.relative_to(folder)}: {fault}' for p, fault in faults(folder))
    print(*bad, *seen, f'{len(bad)} broken links, {len(seen)} other faults', sep='\n')
    sys.exit(bool(bad or seen))
