#!lua flags=allow-oom
-- Ask for a job to be ended. A worker's next stage, or the node that looks after forgotten jobs, ends it: a producer
-- need not be allowed to write results.
-- KEYS job, cancelling  ARGV id
-- Returns the state in which the job is, or unknown.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return 'unknown'
end
if state == 'queued' or state == 'running' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('SADD', KEYS[2], ARGV[1])
end
return state
