-- cancel: removes one waiting message.
--
-- ARGV: [1] time or ''
--       [2] id
-- Returns 1 when it was removed, 0 when there is no such message, -1 when a worker has it in hand (nothing changed).
local now, id = clock(ARGV[1]), ARGV[2]
local queue = open(now)
if redis.call('HEXISTS', leased, id) == 1 then return -1 end
local text = redis.call('HGET', messages, id)
local entry = text and parse_entry(text)
if not entry then return 0 end
local lane = load_lane(entry.tenant)
dequeue(lane, entry.flow, id)
redis.call('HDEL', messages, id)
save_lane(lane, 'backlog')
place(lane, now, queue)
count('cancelled', 1)
return 1
