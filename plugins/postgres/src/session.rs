//! One connection to one server, and the deadline of one statement on it.
//!
//! The thread that makes a call also moves the bytes of its connection: each session has a runtime
//! of its own, which runs inside the call and not at all between calls. So no call waits for another
//! thread, and a session that was idle is looked at before it is used: what the server said meanwhile,
//! such as that it shuts down, is noticed before a statement is sent.
//!
//! Deadlines are kept on this side, since a server that is not heard of cannot keep them. Some time
//! before the deadline the server is asked to cancel the statement: its answer then says for certain
//! that nothing was changed, where silence would leave it unknown.

use std::cell::Cell;
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::join;
use oxiflow_plugin_api::{BackendError, ErrorKind};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout_at;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{
    AsyncMessage, Client, Connection, Error, Row, SimpleQueryMessage, SimpleQueryRow, Socket,
    Statement,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::failure::{Failed, Fault, Nature, Trust, Unreached};
use crate::statement::Sql;
use crate::target::{Place, Target};

/// A call shorter than this is not worth a second connection to cancel its statement.
const SHORTEST_TO_CANCEL: Duration = Duration::from_millis(100);
/// How long before the deadline a statement is cancelled, at most.
const LONGEST_TO_CANCEL: Duration = Duration::from_secs(3);

/// What is said of a server that says nothing.
const SILENT: &str = "it does not answer";

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(100);

/// How long the server keeps a transaction of a call without a deadline from which it hears nothing.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// The function of the server that waits for a standby, whatever language it warns in.
const STANDBY_WAIT: &str = "SyncRepWaitForLSN";

/// What every session is set to. A pipeline's state is small, so compiling its queries is waste; a
/// commit that the server does not wait for is not one that can be acknowledged.
const SETUP: &str = "
    SET search_path = pg_catalog;
    SET default_transaction_isolation = 'read committed';
    SET jit = off;
    SELECT current_setting('server_version_num'), pg_is_in_recovery()::text,
        current_setting('transaction_read_only'), current_setting('fsync'),
        current_setting('full_page_writes'), CASE current_setting('synchronous_commit')
            WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END";

/// The oldest server that has everything which is used here: PostgreSQL 12.
const OLDEST_SERVER: u32 = 120_000;

type Link = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;
type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection to a server that accepts writes.
pub(crate) struct Session {
    client: Client,
    link: Link,
    /// After what it serves, since it is dropped last.
    runtime: Runtime,
    tls: MakeRustlsConnect,
    place: String,
    prepared: [Option<Statement>; Sql::COUNT],
    /// A request to cancel may be on its way, and would hit the next statement.
    is_spent: bool,
    /// The setting because of which an acknowledged write may not survive a power loss, if any.
    not_durable: Option<&'static str>,
}

impl Session {
    /// Connects to a server and makes sure that it accepts writes.
    ///
    /// # Errors
    /// As the server or the network fails; `Unavailable` when there is no answer `until` then.
    pub(crate) fn connect(
        target: &Target,
        place: &Place,
        until: Instant,
    ) -> Result<Self, Unreached> {
        let name = &place.name;
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(|error| {
            Unreached::unavailable(name, &format!("cannot prepare to connect: {error}"))
        })?;
        let connecting =
            async { timeout_at(until.into(), place.config.connect(target.tls.clone())).await };
        let (client, link) = match runtime.block_on(connecting) {
            Ok(Ok(connected)) => connected,
            failed => {
                // Looking up a name cannot be stopped, and is not waited for.
                runtime.shutdown_background();
                return Err(match failed {
                    Ok(Err(error)) => Unreached::new(name, &error),
                    _ => Unreached::unavailable(name, SILENT),
                });
            }
        };
        let mut session = Self {
            client,
            link,
            runtime,
            tls: target.tls.clone(),
            place: name.clone(),
            prepared: Default::default(),
            is_spent: false,
            not_durable: None,
        };
        session.set_up(until)?;
        Ok(session)
    }

    fn set_up(&mut self, until: Instant) -> Result<(), Unreached> {
        let rows = self.simple(until, SETUP).map_err(|failed| match failed.error.kind() {
            ErrorKind::Timeout => Unreached::unavailable(&self.place, SILENT),
            _ => Unreached { error: failed.error, is_starting: false },
        })?;
        let text = |column| rows.first().and_then(|row| row.try_get(column).ok().flatten());
        let version: u32 = text(0).and_then(|number| number.parse().ok()).unwrap_or(0);
        if version < OLDEST_SERVER {
            let (place, oldest) = (&self.place, OLDEST_SERVER / 10_000);
            let message = format!("PostgreSQL at {place}: version {oldest} or later is needed");
            let error = BackendError::new(ErrorKind::Unsupported, message);
            return Err(Unreached { error, is_starting: false });
        }
        if text(1) != Some("false") || text(2) != Some("off") {
            return Err(Unreached::unavailable(&self.place, "it accepts no writes"));
        }
        self.not_durable = match (text(3), text(4)) {
            (Some("on"), Some("on")) => None,
            (Some("on"), _) => Some("full_page_writes"),
            _ => Some("fsync"),
        };
        if text(5).is_some() {
            tracing::debug!("`synchronous_commit` is off there, and on for this connection");
        }
        Ok(())
    }

    /// Host, port and database, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The setting of the server because of which an acknowledged write may not survive a power
    /// loss; `None` when it does.
    pub(crate) fn not_durable(&self) -> Option<&'static str> {
        self.not_durable
    }

    /// The version that the server calls itself.
    pub(crate) fn server_version(&self) -> Option<&str> {
        self.link.parameter("server_version")
    }

    /// Whether another statement can be sent, as far as is known without asking the server.
    pub(crate) fn is_usable(&mut self) -> bool {
        if self.is_spent {
            return false;
        }
        // Lets the runtime see which bytes have come since the last call.
        self.runtime.block_on(tokio::task::yield_now());
        // Nobody waits for what comes of this. Were it the call's own waker, then sending the
        // statement would wake it, which costs two system calls.
        let mut context = Context::from_waker(Waker::noop());
        pump(&mut self.link, &mut context, &Cell::default()).is_ok()
    }

    /// Runs a statement and returns its rows, and how many rows it changed.
    ///
    /// # Errors
    /// What went wrong, in the contract's words, by whether the statement reads or writes.
    pub(crate) fn run(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        sql: Sql,
        parameters: Parameters<'_>,
    ) -> Result<(Vec<Row>, u64), Failed> {
        let mut rows = Vec::new();
        let changed = self.each(until, schema, sql, parameters, |row| rows.push(row))?;
        Ok((rows, changed))
    }

    /// Runs a statement and hands over each of its rows as it comes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) fn each(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        sql: Sql,
        parameters: Parameters<'_>,
        take: impl FnMut(Row),
    ) -> Result<u64, Failed> {
        let nature = sql.nature();
        let result = self
            .prepared(until, schema, sql)
            .and_then(|statement| self.execute(until, nature, &statement, parameters, take));
        result.map_err(|fault| Failed::new(&self.place, nature, &fault))
    }

    /// Runs statements without parameters, in one transaction unless they say otherwise, and returns
    /// their rows. For statements that may be repeated.
    ///
    /// # Errors
    /// As [`run`](Self::run), as if they changed nothing.
    pub(crate) fn simple(
        &mut self,
        until: Instant,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, Failed> {
        let unconfirmed = Cell::default();
        let answering = drive(&mut self.link, &unconfirmed, self.client.simple_query(sql));
        let answer = self.runtime.block_on(async { timeout_at(until.into(), answering).await });
        let messages = answer
            .map_err(|_| Fault::Silent)
            .and_then(|answer| answer.map_err(|ended| ended.fault(false)))
            .map_err(|fault| Failed::new(&self.place, Nature::Read, &fault))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The statement, prepared on this connection. Whatever goes wrong, nothing is changed by it.
    fn prepared(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        sql: Sql,
    ) -> Result<Statement, Fault> {
        if let Some(statement) = &self.prepared[sql as usize] {
            return Ok(statement.clone());
        }
        let text = sql.text(schema);
        let unconfirmed = Cell::default();
        let preparing = drive(&mut self.link, &unconfirmed, self.client.prepare(&text));
        let answer = self.runtime.block_on(async {
            match until {
                Some(until) => timeout_at(until.into(), preparing).await.ok(),
                None => Some(preparing.await),
            }
        });
        let statement = answer.ok_or(Fault::Late)?.map_err(|ended| match ended.fault(false) {
            Fault::Lost(error) => Fault::Unsent(error),
            fault => fault,
        })?;
        self.prepared[sql as usize] = Some(statement.clone());
        Ok(statement)
    }

    fn execute(
        &mut self,
        until: Option<Instant>,
        nature: Nature,
        statement: &Statement,
        parameters: Parameters<'_>,
        mut take: impl FnMut(Row),
    ) -> Result<u64, Fault> {
        let completed = Cell::new(false);
        self.answered(until, nature, &completed, async |client| {
            let parameters = parameters.iter().map(|parameter| *parameter as &dyn ToSql);
            let mut rows = pin!(client.query_raw(statement, parameters).await?);
            loop {
                match rows.try_next().await {
                    Ok(Some(row)) => take(row),
                    Ok(None) => return Ok(rows.rows_affected().unwrap_or(0)),
                    Err(error) => {
                        completed.set(rows.rows_affected().is_some());
                        return Err(error);
                    }
                }
            }
        })
    }

    /// Sends statements and waits for what comes of them. `completed` is set when only the commit
    /// was left.
    fn answered<T>(
        &mut self,
        until: Option<Instant>,
        nature: Nature,
        completed: &Cell<bool>,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        // Whoever moves the bytes is this thread: what is open here is open when it is sent.
        if self.client.is_closed() {
            return Err(Fault::Unsent(None));
        }
        let Self { runtime, client, link, tls, is_spent, .. } = self;
        let unconfirmed = Cell::new(false);
        let answer = runtime.block_on(async {
            let mut driven = pin!(drive(link, &unconfirmed, work(client)));
            let Some(until) = until else { return Some(driven.await) };
            if let Some(soon) = time_to_cancel(until) {
                if let Ok(answer) = timeout_at(soon.into(), driven.as_mut()).await {
                    return Some(answer);
                }
                *is_spent = true;
                let token = client.cancel_token();
                let cancelling = token.cancel_query(tls.clone());
                return timeout_at(until.into(), beside(cancelling, driven)).await.ok();
            }
            timeout_at(until.into(), driven).await.ok()
        });
        match answer {
            Some(Ok(_)) if unconfirmed.get() && nature == Nature::Write => Err(Fault::Unconfirmed),
            Some(Ok(done)) => Ok(done),
            Some(Err(ended)) => Err(ended.fault(completed.get())),
            None => Err(Fault::Silent),
        }
    }

    /// Begins a transaction with the statement `first`, in one round trip, and returns its rows.
    /// `last` is the one that [`commit`](Self::commit) or [`step`](Self::step) will run. When this
    /// fails, the connection cannot be used again.
    ///
    /// Should this side fall silent, the server ends the transaction, and with it what others
    /// wait for, when the deadline has passed.
    ///
    /// # Errors
    /// As [`run`](Self::run), as if it changed nothing.
    pub(crate) fn begin(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        (first, parameters): (Sql, Parameters<'_>),
        last: Sql,
    ) -> Result<Vec<Row>, Failed> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Zero would be without end.
        let silence = left.unwrap_or(LONGEST_SILENCE).as_millis().clamp(1, 86_400_000);
        let begin = format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {silence}");
        let prepared =
            self.prepared(until, schema, last).and_then(|_| self.prepared(until, schema, first));
        let result = prepared.and_then(|statement| {
            self.answered(until, Nature::Read, &Cell::default(), async |client| {
                // They are sent in this order, and only then waited for.
                let rows = client.query(&statement, parameters);
                let (begun, rows) = join(client.batch_execute(&begin), rows).await;
                begun.and(rows)
            })
        });
        result.map_err(|fault| self.failed_within(&fault))
    }

    /// Runs a statement within a transaction. When it is overtaken, the transaction is to be rolled
    /// back; when this fails, the connection cannot be used again.
    ///
    /// # Errors
    /// As [`run`](Self::run), as if it changed nothing: without the commit it does not.
    pub(crate) fn step(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        (sql, parameters): (Sql, Parameters<'_>),
    ) -> Result<Step, Failed> {
        let result = self
            .prepared(until, schema, sql)
            .and_then(|it| self.execute(until, Nature::Read, &it, parameters, drop));
        Step::of(result.map(drop)).map_err(|fault| self.failed_within(&fault))
    }

    /// Ends a transaction with a statement and its commit, in one round trip.
    ///
    /// # Errors
    /// As [`run`](Self::run); the transaction is over then.
    pub(crate) fn commit(
        &mut self,
        until: Option<Instant>,
        schema: &str,
        (sql, parameters): (Sql, Parameters<'_>),
    ) -> Result<Step, Failed> {
        let completed = Cell::new(false);
        let result = self.prepared(until, schema, sql).and_then(|statement| {
            self.answered(until, Nature::Write, &completed, async |client| {
                let last = async {
                    client.execute(&statement, parameters).await?;
                    completed.set(true);
                    Ok(())
                };
                // After a statement that fails, the commit is a rollback.
                let (done, committed) = join(last, client.batch_execute("COMMIT")).await;
                done.and(committed)
            })
        });
        Step::of(result).map_err(|fault| Failed::new(&self.place, Nature::Write, &fault))
    }

    /// Ends a transaction, and undoes what it did.
    ///
    /// # Errors
    /// As [`run`](Self::run). When this fails, the connection cannot be used again.
    pub(crate) fn roll_back(&mut self, until: Option<Instant>) -> Result<(), Failed> {
        let result = self.answered(until, Nature::Read, &Cell::default(), async |client| {
            client.batch_execute("ROLLBACK").await
        });
        result.map_err(|fault| self.failed_within(&fault))
    }

    /// A failure that leaves the connection within a transaction.
    fn failed_within(&self, fault: &Fault) -> Failed {
        let mut failed = Failed::new(&self.place, Nature::Read, fault);
        if failed.trust == Trust::Kept {
            failed.trust = Trust::Lost;
        }
        failed
    }

    /// Ends the connection as the protocol wants it, so that the server has nothing to complain of.
    pub(crate) fn close(self) {
        let Self { runtime, client, link, .. } = self;
        drop(client);
        let ended = runtime.block_on(async { tokio::time::timeout(GOODBYE, link).await });
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!("a connection was gone before it was closed");
        }
    }
}

/// What came of a statement within a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is done.
    Done,
    /// Somebody else has inserted a key that it was about to insert, so the transaction comes to
    /// nothing.
    Overtaken,
}

impl Step {
    fn of(result: Result<(), Fault>) -> Result<Self, Fault> {
        match result {
            Ok(()) => Ok(Self::Done),
            Err(Fault::Refused { error, completed: false })
                if *error.code() == SqlState::UNIQUE_VIOLATION =>
            {
                Ok(Self::Overtaken)
            }
            Err(fault) => Err(fault),
        }
    }
}

/// How work on a connection ended without a result.
enum Ended {
    /// With an error of the work.
    Failed(Error),
    /// The connection is gone.
    Gone(Option<Error>),
}

impl Ended {
    /// What that means for a statement that was sent.
    fn fault(self, completed: bool) -> Fault {
        match self {
            Self::Gone(error) => Fault::Lost(error),
            Self::Failed(error) => match error.as_db_error() {
                Some(refused) => Fault::Refused { error: Box::new(refused.clone()), completed },
                None if error.is_closed() => Fault::Lost(None),
                None if error.source().is_some_and(|cause| cause.is::<std::io::Error>()) => {
                    Fault::Lost(Some(error))
                }
                None => Fault::Surprising(error.to_string()),
            },
        }
    }
}

/// Does work on a connection while moving its bytes.
async fn drive<T>(
    link: &mut Link,
    unconfirmed: &Cell<bool>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Ended> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(result) = work.as_mut().poll(context) {
            return Poll::Ready(result.map_err(Ended::Failed));
        }
        let gone = pump(link, context, unconfirmed).err();
        // What came before the end may be all that the work needs.
        match (work.as_mut().poll(context), gone) {
            (Poll::Ready(result), _) => Poll::Ready(result.map_err(Ended::Failed)),
            (Poll::Pending, Some(error)) => Poll::Ready(Err(Ended::Gone(error))),
            (Poll::Pending, None) => Poll::Pending,
        }
    })
    .await
}

/// Moves the bytes that can be moved now. A warning that a standby was not waited for is noted.
fn pump(
    link: &mut Link,
    context: &mut Context<'_>,
    unconfirmed: &Cell<bool>,
) -> Result<(), Option<Error>> {
    loop {
        match link.poll_message(context) {
            Poll::Pending => return Ok(()),
            Poll::Ready(None) => return Err(None),
            Poll::Ready(Some(Err(error))) => return Err(Some(error)),
            Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                tracing::debug!("PostgreSQL: {}", notice.message());
                if notice.routine() == Some(STANDBY_WAIT) {
                    unconfirmed.set(true);
                }
            }
            Poll::Ready(Some(Ok(_))) => {}
        }
    }
}

/// Does `work`, and `aside` as long as that takes.
async fn beside<T>(aside: impl Future, work: impl Future<Output = T>) -> T {
    let (mut aside, mut work) = (pin!(aside), pin!(work));
    let mut is_done = false;
    poll_fn(|context| {
        is_done = is_done || aside.as_mut().poll(context).is_ready();
        work.as_mut().poll(context)
    })
    .await
}

/// When a statement that has no answer is to be cancelled, so that its answer comes before the
/// deadline; `None` when there is too little time for that.
fn time_to_cancel(until: Instant) -> Option<Instant> {
    let left = until.saturating_duration_since(Instant::now());
    (left >= SHORTEST_TO_CANCEL).then(|| until - (left / 5).min(LONGEST_TO_CANCEL))
}
