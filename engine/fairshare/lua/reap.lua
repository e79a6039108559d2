-- reap: looks after what nobody holds: leases that ran out, throttled lanes that may go on, a ticket that was lost.
--
-- A message whose lease ran out goes back to the place it had. Its charge stays: how long it really ran is not known.
-- When nobody looked after the queue for half a lease, then Redis or all workers were away, and the leases ran out
-- although their holders may live. They get `grace` seconds to renew them before anything is taken back.
--
-- ARGV: [1] time or ''
--       [2] seconds of a lease
--       [3] seconds of grace
--       [4] how many leases at most
-- Returns {leases taken back, seconds until the next throttled lane may go on or ''}.
local now, seconds, grace, limit = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local queue = open(now)
local v = redis.call('HMGET', state, 'attended', 'grace')
local until_when = tonumber(v[2] or 0)
if now - tonumber(v[1] or 0) > seconds / 2 then until_when = now + grace end
redis.call('HSET', state, 'attended', now, 'grace', until_when)

local expired, startable = 0, promote(now, queue, limit)
if now >= until_when then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, limit)) do
    local record = redis.call('HGET', leased, id)
    redis.call('ZREM', leases, id)
    redis.call('HDEL', leased, id)
    if record and redis.call('HEXISTS', messages, id) == 1 then
      startable = startable + give_back(id, parse_lease(record), now, queue, {delivered = true})
      expired = expired + 1
    end
  end
end
count('expired', expired)
ring(startable)
if redis.call('LLEN', tickets) == 0 and redis.call('ZCARD', ready) > 0 then ring(1) end
return {expired, next_due(now)}
