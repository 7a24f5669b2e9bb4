//! What the server does in one step: the compare-and-swap of this backend, in Lua.
//!
//! A script is sent by its hash, and in full when the server does not know it (yet, or any more).
//! Nothing else runs while a script does. The commands that can be refused, for want of memory or
//! because a key holds something else, come before the first that changes anything: a script that
//! fails has changed nothing.

use std::time::Instant;

use redis::{Cmd, Script, Value, cmd};

use crate::failure::Failure;
use crate::link::Link;

/// `KEYS`: the record, the index. `ARGV`: what is expected (`any`, `absent` or `version`), which
/// version that is. Ends the script when it is not so.
const EXPECT: &str = "
local current = redis.call('HGET', KEYS[1], 'version')
if (ARGV[1] == 'absent' and current) or (ARGV[1] == 'version' and current ~= ARGV[2]) then
  return {'conflict', current}
end
";

/// `ARGV` goes on: the key, the new version, the value.
const PUT: &str = "
local time = redis.call('TIME')
local modified = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if not current then
  redis.call('ZADD', KEYS[2], 0, ARGV[3])
end
redis.call('HSET', KEYS[1], 'value', ARGV[5], 'version', ARGV[4], 'modified', modified, 'size', #ARGV[5])
return {'done'}
";

/// `ARGV` goes on: the key.
const DELETE: &str = "
if not current then
  return {'absent'}
end
redis.call('ZREM', KEYS[2], ARGV[3])
redis.call('DEL', KEYS[1])
return {'done'}
";

/// Many of these, one after the other. `KEYS`: the index, and the record of each change. `ARGV`:
/// `atomic` or `independent`; then, for each change, what is expected, which version that is, the
/// key, the new version and the value, or nothing twice to delete. What the changes come to is found
/// out first, and what they leave behind is then written, the index before the records.
const APPLY: &str = "
local atomic = ARGV[1] == 'atomic'
local before, current, left, results = {}, {}, {}, {}
for number = 2, #KEYS do
  local record, at = KEYS[number], number * 5 - 8
  if current[record] == nil then
    current[record] = redis.pcall('HGET', record, 'version')
    before[record] = current[record]
  end
  local there, result = current[record], {'done'}
  if type(there) == 'table' then
    if not string.find(there.err, 'WRONGTYPE', 1, true) then
      return there
    end
    result = {'damaged'}
  elseif (ARGV[at] == 'absent' and there) or (ARGV[at] == 'version' and there ~= ARGV[at + 1]) then
    result = {'conflict', there}
  elseif ARGV[at + 3] ~= '' then
    current[record], left[record] = ARGV[at + 3], at
  elseif there then
    current[record], left[record] = false, at
  else
    result = {'absent'}
  end
  if atomic and (result[1] == 'conflict' or result[1] == 'damaged') then
    return {'refused', number - 2, result}
  end
  results[number - 1] = result
end
local time = redis.call('TIME')
local modified = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for record, at in pairs(left) do
  if before[record] and not current[record] then
    redis.call('ZREM', KEYS[1], ARGV[at + 2])
  elseif current[record] and not before[record] then
    redis.call('ZADD', KEYS[1], 0, ARGV[at + 2])
  end
end
for record, at in pairs(left) do
  if current[record] then
    local value = ARGV[at + 4]
    redis.call('HSET', record, 'value', value, 'version', current[record], 'modified', modified, 'size', #value)
  elseif before[record] then
    redis.call('DEL', record)
  end
end
return {'made', results}
";

/// A script, its text and its hash.
pub(crate) struct Step {
    text: String,
    script: Script,
}

impl Step {
    /// Writes a record.
    pub(crate) fn put() -> Self {
        Self::new(format!("{EXPECT}{PUT}"))
    }

    /// Deletes a record.
    pub(crate) fn delete() -> Self {
        Self::new(format!("{EXPECT}{DELETE}"))
    }

    /// Makes the changes of a batch.
    pub(crate) fn apply() -> Self {
        Self::new(APPLY.to_owned())
    }

    fn new(text: String) -> Self {
        Self { script: Script::new(&text), text }
    }

    /// Runs it on these keys, with these arguments.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(crate) fn run(
        &self,
        link: &mut Link,
        until: Instant,
        keys: &[&[u8]],
        arguments: &[&[u8]],
    ) -> Result<Value, Failure> {
        let request = |command: &str, script: &str| -> Cmd {
            let mut request = cmd(command);
            request.arg(script).arg(keys.len());
            for argument in keys.iter().chain(arguments) {
                request.arg(*argument);
            }
            request
        };
        match link.ask(&request("EVALSHA", self.script.get_hash()), until) {
            Err(Failure::Refused(error)) if error.code() == "NOSCRIPT" => {
                link.ask(&request("EVAL", &self.text), until)
            }
            answer => answer,
        }
    }
}
