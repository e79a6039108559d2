-- file: files what was published since the last operation.
--
-- ARGV: [1] time or ''
-- Returns 1.
open(clock(ARGV[1]))
return 1
