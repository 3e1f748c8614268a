-- From notebook cells to the pages of a report. Runs on what pandoc's ipynb reader gives, with every form of each output.

-- Cells that every notebook repeats: the corpus, and how to find the repository. They are not shown.
local hidden = { "parameters", "setup", "remove-cell" }

local function has_tag(cell, tags)
  for _, tag in ipairs(tags) do
    if (cell.attributes.tags or ""):find('"' .. tag .. '"', 1, true) then return true end
  end
  return false
end

local function is_picture(block)
  return block.t == "Para" and #block.content == 1 and block.content[1].t == "Image"
end

-- The best form of one output: a picture, Markdown (tables and listings), HTML, plain text.
local function best(blocks)
  for _, block in ipairs(blocks) do
    if is_picture(block) then
      local image = block.content[1]
      image.caption = pandoc.Inlines(image.attributes.alt or "")
      image.attributes.alt = nil
      return { pandoc.Div({ pandoc.Plain { image } }, { class = "picture" }) }
    end
  end
  for _, format in ipairs { "markdown", "html" } do
    for _, block in ipairs(blocks) do
      if block.t == "RawBlock" and block.format == format then
        return format == "markdown" and pandoc.read(block.text, "markdown").blocks or { block }
      end
    end
  end
  local text = {}
  for _, block in ipairs(blocks) do
    -- A progress bar is of use only while it moves.
    if block.t == "CodeBlock" and not block.text:match("%%|.*%d+/%d+ %[") then
      text[#text + 1] = pandoc.CodeBlock(block.text, { class = "result" })
    end
  end
  return text
end

local function cell(div)
  if not div.classes:includes("cell") then return nil end
  if has_tag(div, hidden) then return {} end
  local blocks = pandoc.Blocks {}
  for _, block in ipairs(div.content) do
    if block.t == "Div" and block.classes:includes("output") then
      blocks:insert(pandoc.Div(best(block.content), { class = "output" }))
    elseif not (block.t == "CodeBlock" and has_tag(div, { "remove-input" })) then
      blocks:insert(block)
    end
  end
  if not div.classes:includes("code") then return blocks end -- a heading inside a box would start no section
  return pandoc.Div(blocks, { class = "cell" })
end

-- A link whose text is a picture from elsewhere is a badge. Nothing is fetched, and a report has no use for it.
local function badge(link)
  if #link.content == 1 and link.content[1].t == "Image" and link.content[1].src:match("^%a+://") then return {} end
end

-- A chapter opens with its notebook's name, so that links between notebooks lead to it; its number is pandoc's.
local function chapters(document)
  local named = {}
  return document:walk {
    Header = function(header)
      local name = header.identifier:match("^(.-)__") or ""
      if header.level == 1 then
        if header.content[1] and header.content[1].t == "Str" and header.content[1].text:match("^%d+%p*$") then
          header.content:remove(1)
          while header.content[1] and (header.content[1].t == "Space" or header.content[1].text:match("^[·—–:.-]+$")) do
            header.content:remove(1)
          end
        end
        if name ~= "" and not named[name] then
          named[name] = true
          header.identifier = name
        end
      end
      return header
    end,
  }
end

return { { Link = badge }, { Pandoc = chapters }, { Div = cell } }
