#!lua flags=allow-oom
-- Note which files the holder of a job is about to make, so that whoever takes the job over can take them away.
-- KEYS job  ARGV token, pictures
-- Returns noted | lost.
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if job[1] ~= 'running' or job[2] ~= ARGV[1] then
  return 'lost'
end
redis.call('HSET', KEYS[1], 'pictures', ARGV[2])
return 'noted'
