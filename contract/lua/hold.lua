#!lua flags=allow-oom
-- Say that a key is ours for a while.
-- KEYS key  ARGV value, lifetime_ms, 1 to take it from whoever has it
-- Returns 1, or 0 if it is another's.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
