-- What Quarto changes in the pages that nbdev prepares: no raw links in code, folded tests, plain tables.

local own = 'https://synthrob.github.io/synthrob/'

-- nbdev turns names in backticks into links, in comments of a signature too, where they stay Markdown
local function unlink(text) return (text:gsub('%[`([^`\n]*)`%]%(https?://[^%s)]*%)', '%1')) end

-- Is at least half of a cell tests?
local function is_test(text)
  local all, tests = 0, 0
  for line in text:gmatch('[^\n]+') do
    if line:match('^%S') then
      all = all + 1
      if line:match('^test_%w+%(') or line:match('^assert ') or line:match('test_fail%(') then tests = tests + 1 end
    end
  end
  return tests > 0 and 2 * tests >= all
end

-- Tables of epochs and bars of progress tell a reader nothing that the page does not say
local function is_progress(text) return text:match('^%W*epoch%s+train_loss') or text:match('<progress') end

function RawBlock(el)
  if is_progress(el.text) then return {} end
  el.text = el.text:gsub('<(/?)h1', '<%1h2')      -- a report that a page shows; the page's title is its H1
  return el
end

function CodeBlock(el)
  if is_progress(el.text) then return {} end
  el.text = unlink(el.text)
  if not el.classes:includes('cell-code') then        -- bars of progress leave empty lines in an output
    el.text = (el.text:gsub('^%s*\n', ''))
    el.text = (el.text:gsub('\n%s*\n', '\n\n'))
  end
  if el.classes:includes('cell-code') and not el.attributes['code-fold'] and is_test(el.text) then
    el.attributes['code-fold'] = 'true'
    el.attributes['code-summary'] = 'Tests'
  end
  return el
end

-- `folder`, `gan` or `source` is as often a value or a parameter: a link needs a name that can be nothing else.
-- Private names have no place to link to.
function Link(el)
  local code = #el.content == 1 and el.content[1].t == 'Code' and el.content[1].text
  if code and (code:match('^%l+$') or code:match('^_')) and el.target:sub(1, #own) == own then return el.content[1] end
end

-- Tables of pandas: no index that only counts; numbers to the right and words to the left, with their headers
function Table(el)
  local rows = {}
  for _, body in ipairs(el.bodies) do
    for _, row in ipairs(body.body) do rows[#rows + 1] = row end
  end
  if #rows == 0 or #el.head.rows == 0 then return end
  local heads, n = el.head.rows, #el.colspecs
  for _, row in ipairs({table.unpack(heads), table.unpack(rows)}) do
    if #row.cells ~= n then return end
  end
  local text = function(row, j) return pandoc.utils.stringify(row.cells[j].contents) end
  if n > 1 and text(heads[1], 1) == 'epoch' and text(heads[1], 2) == 'train_loss' then return {} end
  local counts = #heads == 1 and text(heads[1], 1) == ''
  for i, row in ipairs(rows) do counts = counts and text(row, 1) == tostring(i - 1) end
  if counts and n > 1 then
    for _, row in ipairs(heads) do table.remove(row.cells, 1) end
    for _, row in ipairs(rows) do table.remove(row.cells, 1) end
    table.remove(el.colspecs, 1)
    n = n - 1
  end
  for j = 1, n do
    local right = true
    for _, row in ipairs(rows) do
      local t = text(row, j)
      right = right and (t == '' or t:match('^[+%-−]*[%d.,]+%s?%%?$') ~= nil or t == 'NaN' or t == 'nan')
    end
    el.colspecs[j][1] = right and 'AlignRight' or 'AlignLeft'
  end
  return el
end
