-- Give a claimed job back as if it had not been taken: a node that shuts down is no fault of the job's.
-- KEYS job, queued, running  ARGV id, token
-- Returns released | lost.
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 'lost'
end
local time = redis.call('TIME')
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
redis.call('HSET', KEYS[1], 'state', 'queued', 'stage', '')
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
return 'released'
