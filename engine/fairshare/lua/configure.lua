-- configure: sets weight, cap, rate and burst of one tenant, and whether it is paused; it holds for what already waits,
-- too.
--
-- ARGV: [1] time or ''
--       [2] tenant
--       [3] "version weight cap rate burst [paused]"; '-' = leave as it is; version '-' = the time in microseconds;
--           paused 1 or 0
--       [4] '1' to leave a tenant alone that the queue never heard of; may be left out
-- Returns 1, or 0 when nothing changed: the lane has a configuration as new or newer, or is not known.
local now, tenant, words = clock(ARGV[1]), ARGV[2], ARGV[3]
local queue, lane = open(now), load_lane(tenant)
if ARGV[4] == '1' and not lane.known then return 0 end
if words:sub(1, 2) == '- ' then words = string.format('%.0f', now * 1000000) .. words:sub(2) end
if not configure_lane(lane, words) then return 0 end
if not lane.known then
  redis.call('ZADD', lanes, 0, tenant)
  save_lane(lane, 'backlog', 'in_flight')
end
redis.call('ZREM', throttled, tenant)
ring((place(lane, now, queue)))
return 1
