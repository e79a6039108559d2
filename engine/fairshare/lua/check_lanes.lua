-- check_lanes: compares a page of lanes with what the queue holds, and repairs on request.
--
-- Leases are as many as the workers have slots, so counting them all in one go is bounded by the size of the fleet.
--
-- ARGV: [1] time or ''
--       [2] '1' to repair, else ''
--       [3] the last tenant of the page before, '' for the first page
--       [4] lanes of a page
--       [5] flows of one lane to count at most; a lane with more keeps its number of waiting messages unchecked
-- Returns {last tenant of this page or '' after the last one, then for each fault: invariant, tenant, what is wrong}.
local now, repair, cursor, limit, max_flows =
  clock(ARGV[1]), ARGV[2] == '1', ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local queue = open(now)
local page = redis.call('ZRANGEBYLEX', lanes, cursor == '' and '-' or '(' .. cursor, '+', 'LIMIT', 0, limit)
local result = {#page == limit and page[#page] or ''}

local function fault(invariant, tenant, text)
  result[#result + 1] = invariant
  result[#result + 1] = tenant
  result[#result + 1] = text
end

local holding = {}
for _, record in ipairs(redis.call('HVALS', leased)) do
  local tenant = parse_lease(record).tenant
  holding[tenant] = (holding[tenant] or 0) + 1
end

local function waiting(tenant)
  local order = stem .. 'order:' .. tenant
  if redis.call('ZCARD', order) > max_flows then return nil end
  local total = 0
  for _, flow in ipairs(redis.call('ZRANGE', order, 0, -1)) do
    local here = redis.call('ZCARD', flow_key(tenant, flow))
    if here == 0 then
      fault('I3', tenant, 'its order names the empty flow ' .. flow)
      if repair then redis.call('ZREM', order, flow) end
    end
    total = total + here
  end
  return total
end

-- Where the lane is and where it should be, as one word each.
local function places(lane)
  local is = redis.call('ZSCORE', ready, lane.tenant) and 'ready' or ''
  if redis.call('ZSCORE', throttled, lane.tenant) then is = is .. 'throttled' end
  if room(lane) < 1 then return is, '' end
  local late = lane.rate > 0 and lane.tat - (lane.burst - 1) / lane.rate > now
  -- A lane whose time has come stays in `throttled` until the next claim or reap.
  if lane.rate > 0 and not late and is == 'throttled' then return is, is end
  return is, late and 'throttled' or 'ready'
end

for _, tenant in ipairs(page) do
  local lane = load_lane(tenant)
  local total, held = waiting(tenant) or lane.backlog, holding[tenant] or 0
  if total ~= lane.backlog then
    fault('I1', tenant, string.format('%d messages wait, the lane says %d', total, lane.backlog))
    lane.backlog = total
  end
  if held ~= lane.in_flight then
    fault('I2', tenant, string.format('%d messages are leased, the lane says %d', held, lane.in_flight))
    lane.in_flight = held
  end
  local is, should = places(lane)
  if is ~= should then fault('I3', tenant, string.format('is in "%s", should be in "%s"', is, should)) end
  if repair then
    save_lane(lane, 'backlog', 'in_flight')
    if is ~= should then
      redis.call('ZREM', throttled, tenant)
      redis.call('ZREM', ready, tenant)
      place(lane, now, queue)
    end
    local idle = lane.backlog + lane.in_flight == 0 and not lane.paused and not lane.version
    if idle and lane.tag <= queue.time and now - lane.recent_at > IDLE then
      redis.call('DEL', stem .. 'lane:' .. tenant, stem .. 'flows:' .. tenant)
      redis.call('ZREM', lanes, tenant)
    end
  end
end

if cursor == '' and redis.call('ZCARD', ready) > 0 and redis.call('LLEN', tickets) == 0 then
  -- It may be in a worker's hands; one too many is harmless.
  if repair then ring(1) else fault('I4', '', 'work is ready and the list holds no ticket') end
end
return result
