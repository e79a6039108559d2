-- pause: stops or resumes one tenant. What workers have in hand goes on; messages may be published meanwhile.
--
-- ARGV: [1] time or ''
--       [2] tenant
--       [3] '1' to pause, '0' to resume
-- Returns 1 when that changed anything, else 0.
local now, tenant, wanted = clock(ARGV[1]), ARGV[2], ARGV[3] == '1'
local queue, lane = open(now), load_lane(tenant)
if lane.paused == wanted then return 0 end
if not lane.known then
  redis.call('ZADD', lanes, 0, tenant)
  save_lane(lane, 'backlog', 'in_flight')
end
lane.paused = wanted
redis.call('HSET', stem .. 'lane:' .. tenant, 'paused', wanted and '1' or '0')
ring((place(lane, now, queue)))
return 1
