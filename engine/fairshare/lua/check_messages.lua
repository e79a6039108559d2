-- check_messages: looks whether each message of a page is in exactly one place, and repairs on request.
--
-- ARGV: [1] time or ''
--       [2] '1' to repair, else ''
--       [3] cursor, '0' for the first page
--       [4] messages of a page, about
-- Returns {next cursor, '0' after the last page; then for each fault: 'I1', tenant, what is wrong}.
local now, repair = clock(ARGV[1]), ARGV[2] == '1'
local queue = open(now)
local scanned = redis.call('HSCAN', messages, ARGV[3], 'COUNT', ARGV[4])
local result = {scanned[1]}

local function fault(tenant, text)
  result[#result + 1] = 'I1'
  result[#result + 1] = tenant
  result[#result + 1] = text
end

-- A message in no place waits again; one that also waits while a worker has it does not wait any more.
local function mend(id, entry, in_hand)
  local lane = load_lane(entry.tenant)
  if in_hand then
    dequeue(lane, entry.flow, id)
  else
    if not lane.known then redis.call('ZADD', lanes, 0, lane.tenant) end
    enqueue(lane, entry.flow, id, next_score(queue, entry.priority, now), queue, now)
    save_seq(queue)
  end
  save_lane(lane, 'backlog')
  ring(math.min(place(lane, now, queue), 1))
end

for i = 1, #scanned[2], 2 do
  local id, entry = scanned[2][i], parse_entry(scanned[2][i + 1])
  if entry then
    local waits = redis.call('ZSCORE', flow_key(entry.tenant, entry.flow), id) and true or false
    local in_hand = redis.call('HEXISTS', leased, id) == 1
    if waits == in_hand then
      fault(entry.tenant, id .. (waits and ' waits and is leased' or ' neither waits nor is leased'))
      if repair then mend(id, entry, in_hand) end
    end
    if in_hand and not redis.call('ZSCORE', leases, id) then
      fault(entry.tenant, id .. ' has a lease without a deadline')
      if repair then redis.call('ZADD', leases, now, id) end
    end
  end
end
return result
