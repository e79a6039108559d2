-- publish: adds messages, each at most once by its id. A single message is posted without this script (`hands.py`).
--
-- ARGV: [1] time or ''
--       then the messages as they stand in the inbox; again is '1' when the publisher tries again because it did not
--       see the first reply, else ''; lane is "version weight cap rate burst", '-' = unsaid; or ''
-- Returns how many messages are in the inbox afterwards.
local posted = 0
for i = 2, #ARGV do posted = redis.call('RPUSH', inbox, ARGV[i]) end
ring(#ARGV - 1)
if posted < INBOX then return posted end
-- rarely:
open(clock(ARGV[1]))
return 0
