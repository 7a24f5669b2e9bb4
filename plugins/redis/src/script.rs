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

/// A script, its text and its hash.
pub(crate) struct Step {
    text: String,
    script: Script,
}

impl Step {
    /// Writes a record.
    pub(crate) fn put() -> Self {
        Self::new(PUT)
    }

    /// Deletes a record.
    pub(crate) fn delete() -> Self {
        Self::new(DELETE)
    }

    fn new(rest: &str) -> Self {
        let text = format!("{EXPECT}{rest}");
        Self { script: Script::new(&text), text }
    }

    /// Runs it on these two keys, with these arguments.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(crate) fn run(
        &self,
        link: &mut Link,
        until: Instant,
        keys: [&[u8]; 2],
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
