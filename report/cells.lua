-- From notebook cells to the pages of a report. Runs on what pandoc's ipynb reader gives, with every form of each output.
-- Metadata read: `repository`, the address that links to files lead to; `alone`, the name of a notebook that is a document by
-- itself. Files read, in pandoc's working folder: drawings and the data of the explorers, `this_run/<corpus>/<name>` or else
-- `figures/<corpus>/<name>`; for paper `glyphs.txt`, the code points that
-- its fonts can show, one a line; `report/references.bib`, whose addresses turn links into citations.

local html = FORMAT:match("html") ~= nil
local chapter, section, subsection = "0", 0, 0 -- a chapter has its notebook's number
local figures, tables = 0, 0
local names = {} -- identifier -> "Figure 4.2"
local identifiers = {} -- every target of a link
local repository, alone

-- Cells that every notebook repeats: the corpus, how to find the repository, what is kept for notebook 07. They are not shown.
local hidden = { "parameters", "setup", "numbers", "remove-cell" }
-- Code that only draws or prints what was computed before: folded on a screen, left out on paper.
local drawing = {
  "^figures%.save_", "^FigureFolder%(", "^table%(", "^display%(", "^plots%.", "^attention_plots%.", "^%w*Explorer%(", "^show_",
}

local works = {} -- address -> key of the work that it leads to
local key
for line in io.lines("report/references.bib") do
  key = line:match("^@%w+{(.-),") or key
  local address = line:match("^%s*url = {(.-)}")
  if address then works[address] = key end
end

local function fail(message)
  io.stderr:write("report: " .. message .. "\n")
  os.exit(1)
end

local function has_tag(cell, tags)
  for _, tag in ipairs(tags) do
    if (cell.attributes.tags or ""):find('"' .. tag .. '"', 1, true) then return true end
  end
  return false
end

local function is_picture(block)
  return block.t == "Para" and #block.content == 1 and block.content[1].t == "Image"
end

local function caption(kind, number, inlines)
  local label = alone and string.format("%s %d", kind, number) or string.format("%s %s.%d", kind, chapter, number)
  return label, pandoc.Inlines { pandoc.Strong(label .. "."), pandoc.Space() } .. inlines
end

-- Where a file of the figures' folders is, and what it holds: this run's, or else the repository's.
local function found(name)
  for _, folder in ipairs { "this_run/", "figures/" } do
    local file = io.open(folder .. name, "rb")
    if file then
      local text = file:read("a")
      file:close()
      return folder .. name, text
    end
  end
  fail("figures/" .. name .. " is missing: execute the notebook that writes it")
end

-- JSON inside a page must not end the element that holds it.
local function embedded(name)
  local _, text = found(name)
  return (text:gsub("%s*\n%s*", ""):gsub("<", "\\u003c"):gsub(">", "\\u003e"):gsub("&", "\\u0026"))
end

local function picture(image, notebook)
  figures = figures + 1
  local alt, explorer = image.attributes.alt or "", image.attributes.explorer
  local drawn = image.attributes.figure -- <corpus>/<name>
  local name = drawn and drawn:match("[^/]*$")
  if alt == "" then fail("a picture of " .. notebook .. " has no alt text") end
  local live = explorer and html
  local label, long = caption("Figure", figures, pandoc.Inlines(live and "Every head: choose a sentence, a layer and a head." or image.attributes.caption or ""))
  local id = (alone and "" or notebook .. "__") .. (name or "picture-" .. figures)
  names[id], identifiers[id] = label, true
  local width = tonumber((image.attributes.width or ""):match("^%d+"))
  image.attributes = {}
  if drawn and not explorer then image.src = found(drawn .. ".svg") end
  if width then image.attributes.width = html and width .. "px" or math.min(alone and 84 or 100, width // (alone and 9 or 7.2)) .. "%" end
  image.caption = pandoc.Inlines(alt)
  local content = pandoc.Blocks { pandoc.Plain { image } }
  if live then
    content = pandoc.Blocks {
      pandoc.Div(content, { class = "still" }),
      pandoc.RawBlock("html", '<script type="application/json">' .. embedded(explorer .. ".json") .. "</script>"),
    }
  end
  return pandoc.Figure(content, { long = { pandoc.Plain(long) } }, { id = id, class = explorer and "picture explorer" or (width or 0) > 740 and "picture" or "picture plain" })
end

-- Columns as wide as they need, where a page has room for them. Else short ones keep their width, headers are broken into
-- three lines, and the longest texts share what is left. A browser does that by itself. (Left alone, pandoc would make columns as
-- wide as the dashes under the header.)
local function with_widths(tabular)
  local room, count = 104, #tabular.colspecs -- characters across a page
  local gap, whole, body, word = 2.5, {}, {}, {} -- longest header or cell, cell, word
  local function measure(rows, header)
    for _, row in ipairs(rows) do
      for i, cell in ipairs(row.cells) do
        local text = pandoc.utils.stringify(cell.contents)
        local length = utf8.len(text)
        whole[i] = math.max(whole[i] or 0, length)
        if header then word[i] = math.ceil(length / 3) else body[i] = math.max(body[i] or 0, length) end
        for one in text:gmatch("%S+") do word[i] = math.max(word[i] or 0, utf8.len(one) * (header and 1.1 or 1)) end
      end
    end
  end
  measure(tabular.head.rows, true)
  for _, part in ipairs(tabular.bodies) do measure(part.body, false) end
  local function total(limit)
    local sum, widths = 0, {}
    for i = 1, count do
      widths[i] = gap + math.max(word[i] or 0, math.min(limit and body[i] or whole[i], limit or whole[i]))
      sum = sum + widths[i]
    end
    return sum, widths
  end
  local limit, sum, widths = nil, total()
  local fits = html or sum <= room
  if not fits then
    limit = room
    repeat
      limit = limit - 1
      sum, widths = total(limit)
    until sum <= room or limit <= 1
  end
  local columns = tabular.colspecs
  for i = 1, count do columns[i] = { columns[i][1], not fits and widths[i] / sum or nil } end
  tabular.colspecs = columns
  return tabular
end

-- What other Markdown takes as it is: no citations from @, no subscripts from ~, no dashes from --.
local plain_markdown = "markdown-citations-smart-strikeout-subscript-superscript"

-- Typst reads = - + / or 1. at the beginning of a cell as a heading or a list, and pandoc lets them stand.
local function as_typed(blocks)
  if html then return blocks end
  return blocks:walk {
    Plain = function(cell)
      cell.content:insert(1, pandoc.RawInline("typst", "#[]"))
      return cell
    end,
  }
end

-- A table's caption is a paragraph of italics before it.
local function with_caption(blocks)
  local first, second = blocks[1], blocks[2]
  if not (first and first.t == "Para" and #first.content == 1 and first.content[1].t == "Emph") then return blocks end
  if not (second and second.t == "Table") then return blocks end
  tables = tables + 1
  local _, long = caption("Table", tables, first.content[1].content)
  second.caption = { long = { pandoc.Plain(long) } }
  blocks:remove(1)
  return blocks
end

-- The best form of one output: a picture, Markdown (tables and listings), HTML, plain text.
local function best(blocks, notebook)
  for _, block in ipairs(blocks) do
    if is_picture(block) then
      local explorer = block.content[1].attributes.explorer
      return alone and explorer and {} or { picture(block.content[1], notebook) } -- its heads are all in other figures
    end
  end
  for _, format in ipairs { "markdown", "html" } do
    for _, block in ipairs(blocks) do
      if block.t == "RawBlock" and block.format == format then
        local summary, folded = block.text:match("^<details><summary>(.-)</summary>%s*(.-)%s*</details>%s*$")
        if folded and not html then -- paper cannot fold
          return pandoc.Blocks { pandoc.Para { pandoc.Strong(summary .. ".") } } .. pandoc.read(folded, plain_markdown).blocks
        end
        return format == "markdown" and with_caption(as_typed(pandoc.read(block.text, plain_markdown).blocks)) or { block }
      end
    end
  end
  local text = {}
  for _, block in ipairs(blocks) do
    if block.t == "CodeBlock" then text[#text + 1] = pandoc.CodeBlock(block.text, { class = "result" }) end
  end
  return text
end

local function is_drawing(cell, code)
  if has_tag(cell, { "hide-input" }) then return true end
  for _, pattern in ipairs(drawing) do
    if code:match(pattern) then return true end
  end
  return false
end

local function code_of(cell, block, notebook)
  if not is_drawing(cell, block.text) then return { block } end
  if not html or notebook:match("^07") then return {} end -- results show no code that draws
  return {
    pandoc.RawBlock("html", '<details class="code"><summary>Code</summary>'),
    block,
    pandoc.RawBlock("html", "</details>"),
  }
end

-- Below its picture a notebook shows the caption that the report sets with a number.
local function is_caption(blocks)
  for _, block in ipairs(blocks) do
    if block.t == "RawBlock" and block.format == "markdown" then return block.text:match("^%*[^\n]*%*%s*$") ~= nil end
  end
  return false
end

local function code_cell(div, notebook)
  local blocks, outputs = pandoc.Blocks {}, pandoc.Blocks {}
  for _, block in ipairs(div.content) do
    if block.t == "Div" and block.classes:includes("output") then
      local shown = is_caption(block.content) and {} or best(block.content, notebook)
      if #shown > 0 then outputs:insert(pandoc.Div(shown, { class = "output" })) end
    else
      blocks:extend(code_of(div, block, notebook))
    end
  end
  if html and #outputs > 0 and has_tag(div, { "hide-output" }) then -- the reader was asked to predict it
    outputs:insert(1, pandoc.RawBlock("html", '<details class="answer"><summary>What comes out</summary>'))
    outputs:insert(pandoc.RawBlock("html", "</details>"))
  end
  return pandoc.Div(blocks .. outputs, { class = "cell" })
end

-- The number before a heading is ours: chapters are numbered like their notebooks, whatever their order.
local function numbered(header, notebook)
  if header.level == 1 then
    chapter, section, subsection, figures, tables = tostring(tonumber(notebook:match("^%d+"))), 0, 0, 0, 0
    while header.content[1] and (header.content[1].t == "Space" or header.content[1].text:match("^[%d·—–:.-]+$")) do
      header.content:remove(1)
    end
    header.identifier = notebook -- where links from one notebook to another lead
  elseif header.level == 2 then
    section, subsection = section + 1, 0
  elseif header.level == 3 then
    subsection = subsection + 1
  end
  identifiers[header.identifier] = true
  local before = alone and "" or chapter .. "."
  local number = ({ chapter, before .. section, before .. section .. "." .. subsection })[header.level]
  if number then
    header.content = pandoc.Inlines { pandoc.Span(number, { class = "header-section-number" }), pandoc.Space() } .. header.content
  end
  return header
end

local function pages(document)
  repository = pandoc.utils.stringify(document.meta.repository or "")
  alone = document.meta.alone and pandoc.utils.stringify(document.meta.alone)
  document.meta.repository, document.meta.alone = nil, nil
  local blocks = pandoc.Blocks {}
  local shown = true
  local notebook = PANDOC_STATE.input_files[1]:gsub("%.", "") -- as pandoc names it, where there is more than one
  for _, block in ipairs(document.blocks) do
    local is_cell = block.t == "Div" and block.classes:includes("cell")
    if is_cell and block.classes:includes("markdown") then
      for _, inner in ipairs(block.content) do -- a heading inside a box would start no section
        if inner.t == "Header" then
          notebook = inner.identifier:match("^(.-)__") or notebook
          inner = numbered(inner, notebook)
        end
        -- Alone, a notebook has its title above it already, and its references below it.
        local title = alone and inner.t == "Header" and inner.level == 1
        if inner.t == "Header" then shown = not (alone and inner.identifier == "references") end
        if shown and not title then blocks:insert(inner) end
      end
    elseif not (is_cell and has_tag(block, hidden)) then
      blocks:insert(is_cell and code_cell(block, notebook) or block)
    end
  end
  document.blocks = blocks
  return document
end

local function link(element)
  -- A link whose text is a picture from elsewhere is a badge. Nothing is fetched, and a report has no use for it.
  if #element.content == 1 and element.content[1].t == "Image" and element.content[1].src:match("^%a+://") then return {} end
  local work = works[element.target]
  if work then -- by its number, after its name
    return element.content .. { pandoc.Space(), pandoc.Cite({ pandoc.Str("[@" .. work .. "]") }, { pandoc.Citation(work, "NormalCitation") }) }
  end
  if alone then element.target = element.target:gsub("^" .. alone .. "#", "#") end
  if element.target == "../build/live.html" then -- beside the page
    if not html then return element.content end
    element.target = "live.html"
  elseif element.target:match("^%.%./") then -- a file of the repository
    element.target = repository .. "/blob/main/" .. element.target:sub(4)
  elseif element.target:match("^exercises/") or alone and element.target:match("^%d%d_[%w_]+%.ipynb") then
    -- a notebook that is not in this document
    element.target = repository .. "/blob/main/notebooks/" .. element.target
  elseif element.target:match("^#") then
    local target = element.target:sub(2)
    -- Jupyter's anchors keep capitals and marks, pandoc's do not.
    local lower = target:gsub(alone and "^(.*)$" or "__(.*)$", function(rest)
      return (alone and "" or "__") .. rest:lower():gsub("[^%w_\128-\255-]", "")
    end)
    target = identifiers[target] and target or lower
    if not identifiers[target] then fail("a link leads nowhere: " .. element.target) end
    element.target = "#" .. target
    if names[target] then element.content:extend { pandoc.Space(), pandoc.Str("(" .. names[target] .. ")") } end
  end
  return element
end

-- A table that is wider than the screen scrolls by itself.
local function fitted(tabular)
  tabular = with_widths(tabular)
  return html and pandoc.Div(tabular, { class = "wide" }) or tabular
end

-- Paper has only the fonts that it is set with. What they have no glyph for is shown as its code point, not as an empty box.
local visible = {}
if FORMAT == "typst" then
  local glyphs = {}
  for code in io.lines("glyphs.txt") do glyphs[tonumber(code)] = true end
  for _, code in utf8.codes("\t\n\r") do glyphs[code] = true end

  -- A text in pieces: runs of characters that have a glyph, and the code points of those between them.
  local function pieces(text)
    local found = pandoc.List {}
    for _, code in utf8.codes(text) do
      local last, known = found[#found], glyphs[code] or false
      local written = known and utf8.char(code) or string.format("U+%04X", code)
      if last and last.known == known then
        last.text = last.text .. (known and "" or " ") .. written
      else
        found:insert { known = known, text = written }
      end
    end
    return found
  end

  function visible.Str(word)
    if not word.text:find("[\1-\31\127-\255]") then return end
    return pieces(word.text):map(function(piece) return (piece.known and pandoc.Str or pandoc.Code)(piece.text) end)
  end

  function visible.Code(code)
    code.text = table.concat(pieces(code.text):map(function(piece) return piece.text end))
    return code
  end
  visible.CodeBlock = visible.Code
end

return { { Pandoc = pages }, { Link = link }, visible, { Table = fitted } }
