"""Every link of the rendered site leads somewhere: `links.py FOLDER` checks pages, anchors, pictures, styles and scripts."""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

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
            to, anchor = urldefrag(link)
            if urlsplit(link).scheme or link.startswith('//'): continue      # another site, or data
            target = (folder if to.startswith('/') else path.parent)/unquote(urlsplit(to).path).lstrip('/') if to else path
            target = (target/'index.html' if target.is_dir() else target).resolve()
            if not target.exists(): yield path, link
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors: yield path, link

if __name__ == '__main__':
    folder = Path(sys.argv[1]).resolve()
    bad = sorted(f'{p.relative_to(folder)}: {link}' for p, link in broken(folder))
    print(*bad, f'{len(bad)} broken links', sep='\n')
    sys.exit(bool(bad))
