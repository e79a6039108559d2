-- depths: how many messages wait and are in flight in each of some lanes.
--
-- ARGV: [1] the last tenant of the page before; '' for the first page
--       [2] how many lanes to look at
-- Returns tenant, backlog and in flight of each lane, in the order of their tenants, all joined by \31: one long text
-- costs whoever reads it a fraction of what thousands of small replies do.
open(clock(''))
local start = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local found = {}
for _, tenant in ipairs(redis.call('ZRANGEBYLEX', lanes, start, '+', 'LIMIT', 0, ARGV[2])) do
  local v = redis.call('HMGET', stem .. 'lane:' .. tenant, 'backlog', 'in_flight')
  found[#found + 1] = tenant
  found[#found + 1] = v[1] or '0'
  found[#found + 1] = v[2] or '0'
end
return table.concat(found, SEP)
