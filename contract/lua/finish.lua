#!lua flags=allow-oom
-- End a job: state, result and stream entry in one step, or none of them.
-- KEYS job, queued, running, finished, dead, result, results, returned
-- ARGV id, token ('' ends a queued job, which nobody holds), state, result, ttl_s, stream_length
-- Returns finished | lost | the state that forbids it | unknown.
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if not job[1] then
  return 'unknown'
end
if ARGV[2] == '' then
  if job[1] ~= 'queued' then
    return job[1]
  end
elseif job[2] ~= ARGV[2] then
  return 'lost'
elseif job[1] ~= 'running' then
  -- The same holder says it again, because the first answer never reached it; or it gave the job back.
  return job[1] == 'queued' and 'lost' or 'finished'
end
redis.call('ZREM', KEYS[8], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[5])
redis.call('SET', KEYS[6], ARGV[4], 'EX', ttl)
redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[6], '*', 'job_id', ARGV[1], 'state', ARGV[3])
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'finished_ms', now, 'stage', '')
redis.call('HDEL', KEYS[1], 'pictures', 'nonce')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[3] == 'dead' then
  -- A job given up waits for a person, however long that takes.
  redis.call('ZADD', KEYS[5], now, ARGV[1])
else
  redis.call('EXPIRE', KEYS[1], ttl)
  redis.call('ZADD', KEYS[4], now, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - ttl * 1000)
end
return 'finished'
