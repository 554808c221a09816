//! Sampling a running server: a few prepared statements sent together, so that one sample costs one round trip.

use model::observe::{PendingRestart, Receiver, Sender, ServerFacts, Slot};
use model::{Epoch, Lsn, SystemId, Timeline, WallTime};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row, Statement};

/// `CASE` keeps functions that exist only on one side of recovery from being called on the other.
const MAIN: &str = "
SELECT current_setting('server_version_num')::int4, split_part(current_setting('server_version'), ' ', 1),
    r.recovery,
    CASE WHEN NOT r.recovery THEN pg_current_wal_flush_lsn()::text END,
    CASE WHEN r.recovery THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text END,
    CASE WHEN r.recovery THEN pg_last_wal_replay_lsn()::text END,
    CASE WHEN r.recovery
        THEN (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::int8 END,
    CASE WHEN r.recovery THEN pg_is_wal_replay_paused() ELSE false END,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000)::int8,
    current_setting('synchronous_standby_names'),
    current_setting('primary_conninfo') <> '',
    (SELECT count(*)::int8 FROM pg_stat_get_activity(NULL) AS a
        JOIN pg_authid AS u ON u.oid = a.usesysid
        WHERE a.backend_type = 'client backend' AND u.rolname <> $1),
    CASE WHEN NOT r.recovery THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
    (extract(epoch FROM pg_conf_load_time()) * 1000000)::int8,
    to_regclass('stemma.lineage') IS NOT NULL
FROM (SELECT pg_is_in_recovery() AS recovery) AS r";

/// pg_control's timeline is old from a promotion to the next checkpoint, and between checkpoints while replaying; the
/// end of recovery moves on with replay, the receiver's with what it wrote. The greatest is the one being followed.
const REPLICA_TIMELINE: &str = "
SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)::int8
FROM pg_control_checkpoint() AS c, pg_control_recovery() AS r";

const RECEIVER: &str = "
SELECT pid, status, coalesce(sender_host, '') || ':' || coalesce(sender_port, 0), slot_name, flushed_lsn::text,
    (extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000)::int8, latest_end_lsn::text,
    received_tli::int8
FROM pg_stat_wal_receiver WHERE pid IS NOT NULL";

const SENDERS: &str = "
SELECT coalesce(application_name, ''), host(client_addr), pid, coalesce(state, ''), coalesce(sync_state, ''),
    sent_lsn::text, write_lsn::text, flush_lsn::text, replay_lsn::text
FROM pg_stat_replication ORDER BY application_name, pid";

const SLOTS: &str = "
SELECT slot_name::text, slot_type, active, restart_lsn::text, wal_status,
    greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
        THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        ELSE pg_current_wal_lsn() END, restart_lsn))::int8
FROM pg_replication_slots ORDER BY slot_name";

const SYSTEM: &str = "SELECT system_identifier::text FROM pg_control_system()";

/// The old value is the one in force here; the new one is the last in the files, or the built-in one where the files
/// no longer name the parameter.
const PENDING: &str = "
SELECT s.name, current_setting(s.name), coalesce(f.setting, s.boot_val, '')
FROM pg_settings AS s LEFT JOIN LATERAL (
    SELECT setting FROM pg_file_settings AS f WHERE f.name = s.name ORDER BY seqno DESC LIMIT 1) AS f ON true
WHERE s.pending_restart";

/// A replica begins with what the primary said at a checkpoint: which transactions had ended. Those that were committed
/// and waited for their acknowledgement had not, and stay invisible until one that began later has ended, although
/// their end was applied (`ProcArrayApplyRecoveryInfo` takes over `latestCompletedXid` and skips what is committed in
/// `pg_xact`). All of them are older than the checkpoint's next transaction. Once this is true it stays so for the life of
/// the server; but a later checkpoint asks for more, so it is not asked again.
pub const SHOWS_REPLAYED: &str = "
SELECT NOT pg_is_in_recovery() OR pg_snapshot_xmax(pg_current_snapshot())::text::numeric
    >= split_part(next_xid, ':', 1)::numeric * 4294967296 + split_part(next_xid, ':', 2)::numeric
FROM pg_control_checkpoint()";

const LINEAGE: &str = "SELECT max(epoch) FROM stemma.lineage";

struct Prepared {
    main: Statement,
    timeline: Statement,
    receiver: Statement,
    senders: Statement,
    slots: Statement,
    system_id: SystemId,
}

/// What need not be asked every time.
#[derive(Default)]
struct Memory {
    /// For which connection it holds: statements die with theirs.
    client: std::sync::Weak<Client>,
    prepared: Option<Arc<Prepared>>,
    /// When the configuration was read that `pending` belongs to: only reading it again can change that.
    loaded_at: Option<i64>,
    pending: BTreeMap<String, PendingRestart>,
    /// Reads were seen to show all that was replayed. A connection does not outlive its server.
    shows_replayed: bool,
}

/// Samples one server.
#[derive(Default)]
pub(crate) struct Sampler {
    memory: Mutex<Memory>,
}

impl Sampler {
    fn with<T>(&self, work: impl FnOnce(&mut Memory) -> T) -> T {
        work(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn prepared(&self, client: &Arc<Client>) -> Result<Arc<Prepared>, Error> {
        let known = self.with(|memory| {
            let same = std::ptr::eq(memory.client.as_ptr(), Arc::as_ptr(client));
            memory.prepared.clone().filter(|_| same)
        });
        if let Some(prepared) = known {
            return Ok(prepared);
        }
        let (main, timeline, receiver, senders, slots, system) = tokio::try_join!(
            client.prepare_typed(MAIN, &[Type::TEXT]),
            client.prepare(REPLICA_TIMELINE),
            client.prepare(RECEIVER),
            client.prepare(SENDERS),
            client.prepare(SLOTS),
            client.query_one(SYSTEM, &[]),
        )?;
        let system_id = SystemId(u64_of(system.try_get::<_, String>(0)?.parse().ok()));
        let prepared = Arc::new(Prepared { main, timeline, receiver, senders, slots, system_id });
        self.with(|memory| {
            *memory =
                Memory { client: Arc::downgrade(client), prepared: Some(Arc::clone(&prepared)), ..Memory::default() };
        });
        Ok(prepared)
    }

    /// Takes one sample.
    pub(crate) async fn sample(&self, client: &Arc<Client>, superuser: &str) -> Result<ServerFacts, Error> {
        let prepared = self.prepared(client).await?;
        let ours: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&superuser];
        // Sent together, answered in order.
        let (main, timeline, receiver, senders, slots) = tokio::try_join!(
            client.query_one(&prepared.main, &ours),
            client.query_one(&prepared.timeline, &[]),
            client.query_opt(&prepared.receiver, &[]),
            client.query(&prepared.senders, &[]),
            client.query(&prepared.slots, &[]),
        )?;
        let in_recovery: bool = main.try_get(2)?;
        let loaded_at: i64 = main.try_get(13)?;
        let receiver_timeline = receiver.as_ref().map(|row| row.try_get::<_, Option<i64>>(7)).transpose()?.flatten();
        let timeline = match main.try_get::<_, Option<&str>>(12)? {
            Some(hex) => u32::from_str_radix(hex, 16).unwrap_or(0),
            None => small(timeline.try_get::<_, Option<i64>>(0)?.max(receiver_timeline)),
        };
        let lineage_epoch = if main.try_get(14)? { lineage(client).await? } else { None };
        Ok(ServerFacts {
            version_num: small(Some(i64::from(main.try_get::<_, i32>(0)?))),
            version: main.try_get(1)?,
            system_id: prepared.system_id,
            timeline: Timeline(timeline),
            in_recovery,
            written: lsn(&main, 3)?,
            received: lsn(&main, 4)?,
            replayed: lsn(&main, 5)?,
            replayed_at: main.try_get::<_, Option<i64>>(6)?.map(WallTime),
            replay_paused: main.try_get(7)?,
            started_at: WallTime(main.try_get(8)?),
            receiver: receiver.as_ref().map(receiver_of).transpose()?,
            senders: senders.iter().map(sender_of).collect::<Result<_, _>>()?,
            slots: slots.iter().map(slot_of).collect::<Result<_, _>>()?,
            synchronous_standby_names: main.try_get(9)?,
            has_upstream: main.try_get(10)?,
            shows_replayed: self.shows_replayed(client).await?,
            pending_restart: self.pending(client, loaded_at).await?,
            connections: small(Some(main.try_get(11)?)),
            lineage_epoch,
        })
    }

    async fn shows_replayed(&self, client: &Client) -> Result<bool, Error> {
        if self.with(|memory| memory.shows_replayed) {
            return Ok(true);
        }
        let shows = client.query_one(SHOWS_REPLAYED, &[]).await?.try_get(0)?;
        self.with(|memory| memory.shows_replayed = shows);
        Ok(shows)
    }

    async fn pending(&self, client: &Client, loaded_at: i64) -> Result<BTreeMap<String, PendingRestart>, Error> {
        let known = self.with(|memory| (memory.loaded_at == Some(loaded_at)).then(|| memory.pending.clone()));
        if let Some(pending) = known {
            return Ok(pending);
        }
        let mut pending = BTreeMap::new();
        for row in client.query(PENDING, &[]).await? {
            pending.insert(row.try_get(0)?, PendingRestart { old: row.try_get(1)?, new: row.try_get(2)? });
        }
        self.with(|memory| (memory.loaded_at, memory.pending) = (Some(loaded_at), pending.clone()));
        Ok(pending)
    }
}

/// The highest epoch in the database. The table may vanish between two statements; then there is none.
async fn lineage(client: &Client) -> Result<Option<Epoch>, Error> {
    match client.query_one(LINEAGE, &[]).await {
        Ok(row) => Ok(row.try_get::<_, Option<i64>>(0)?.and_then(|epoch| u64::try_from(epoch).ok()).map(Epoch)),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn small(number: Option<i64>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

fn u64_of(number: Option<u64>) -> u64 {
    number.unwrap_or(0)
}

fn lsn(row: &Row, at: usize) -> Result<Option<Lsn>, Error> {
    Ok(row.try_get::<_, Option<&str>>(at)?.and_then(|text| text.parse().ok()))
}

fn receiver_of(row: &Row) -> Result<Receiver, Error> {
    Ok(Receiver {
        pid: row.try_get(0)?,
        status: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
        upstream: row.try_get(2)?,
        slot: row.try_get::<_, Option<String>>(3)?.filter(|slot| !slot.is_empty()),
        flushed: lsn(row, 4)?,
        last_message_age_ms: row.try_get::<_, Option<i64>>(5)?.map(|age| u64::try_from(age).unwrap_or(0)),
        latest_end: lsn(row, 6)?,
    })
}

fn sender_of(row: &Row) -> Result<Sender, Error> {
    Ok(Sender {
        application_name: row.try_get(0)?,
        client_addr: row.try_get(1)?,
        pid: row.try_get(2)?,
        state: row.try_get(3)?,
        sync_state: row.try_get(4)?,
        sent: lsn(row, 5)?,
        write: lsn(row, 6)?,
        flush: lsn(row, 7)?,
        replay: lsn(row, 8)?,
    })
}

fn slot_of(row: &Row) -> Result<Slot, Error> {
    Ok(Slot {
        name: row.try_get(0)?,
        slot_type: row.try_get(1)?,
        active: row.try_get(2)?,
        restart: lsn(row, 3)?,
        wal_status: row.try_get(4)?,
        retained_bytes: row.try_get::<_, Option<i64>>(5)?.and_then(|bytes| u64::try_from(bytes).ok()),
    })
}
