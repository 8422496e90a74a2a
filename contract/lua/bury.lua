#!lua flags=allow-oom
-- Let go of a job that was given up: its record now expires like that of any ended job.
-- KEYS job, dead, finished  ARGV id, ttl_s
-- Returns 1, or 0 if it is not among the dead.
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then
  return 0
end
local time = redis.call('TIME')
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[2]))
redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
return 1
