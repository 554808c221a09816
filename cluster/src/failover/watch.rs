//! The watcher beside a keeper: told until when its keeper's rights hold, it acts when they end without having been
//! renewed, whatever the keeper does. It knows nothing else and asks nobody.
//!
//! A keeper that hangs tells nothing more, so the last word counts; one that died cannot tell anything, so the last word
//! counts as well, and the watcher ends when nothing is left to be watched. A keeper that starts again has a watcher of its
//! own, and dismisses the older one only when it knows what is to be watched (`super::lease`: by then it holds the lease
//! itself, or its server needs none). So there is no gap, and no old word that outlives a new right.

use model::{Millis, Moment};

/// What the keeper says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// When the server must be gone; absent where it may go on without a lease.
    pub server: Option<Moment>,
    /// When the floating address must be gone; absent where this node does not have it.
    pub address: Option<Moment>,
}

/// Bytes of a word on the way to the watcher.
pub const WORD_BYTES: usize = 16;

impl Word {
    /// For the way to the watcher. No moment is zero: that is the start of the machine.
    pub fn to_bytes(self) -> [u8; WORD_BYTES] {
        let mut bytes = [0; WORD_BYTES];
        bytes[..8].copy_from_slice(&self.server.map_or(0, |at| at.0.max(1)).to_le_bytes());
        bytes[8..].copy_from_slice(&self.address.map_or(0, |at| at.0.max(1)).to_le_bytes());
        bytes
    }

    /// The same, back.
    pub fn from_bytes(bytes: [u8; WORD_BYTES]) -> Word {
        let (server, address) = bytes.split_at(8);
        let read = |part: &[u8]| {
            let number = u64::from_le_bytes(part.try_into().expect("eight bytes"));
            (number != 0).then_some(Moment(number))
        };
        Word { server: read(server), address: read(address) }
    }
}

/// What the watcher has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Wait for a word, so long at most if there is anything to be watched.
    Wait(Option<Millis>),
    /// Take the floating address off.
    DropAddress,
    /// Kill every process of the server, and see them gone.
    Fence,
    /// Nothing is left to be watched, and nobody will say more.
    End,
}

/// What a watcher knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    word: Word,
    alone: bool,
}

impl Watch {
    /// The keeper said this. It replaces what it said before, also by an earlier moment.
    pub fn hear(&mut self, word: Word) {
        self.word = word;
    }

    /// The keeper is gone, or ended the connection: no word will come any more.
    pub fn orphaned(&mut self) {
        self.alone = true;
    }

    /// The server is gone. It is watched again from the keeper's next word on.
    pub fn fenced(&mut self) {
        self.word.server = None;
    }

    /// The address is gone, or cannot be taken off.
    pub fn dropped(&mut self) {
        self.word.address = None;
    }

    /// Whether the server is among what is watched.
    pub fn watches_server(&self) -> bool {
        self.word.server.is_some()
    }

    /// What is to be done at `now`. The address goes first: clients should not reach a server that dies.
    pub fn duty(&self, now: Moment) -> Duty {
        let due = |at: Option<Moment>| at.is_some_and(|at| now >= at);
        if due(self.word.address) {
            return Duty::DropAddress;
        }
        if due(self.word.server) {
            return Duty::Fence;
        }
        match (self.word.address.into_iter().chain(self.word.server).min(), self.alone) {
            (Some(first), _) => Duty::Wait(Some(first.since(now))),
            (None, true) => Duty::End,
            (None, false) => Duty::Wait(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(server: Option<u64>, address: Option<u64>) -> Word {
        Word { server: server.map(Moment), address: address.map(Moment) }
    }

    #[test]
    fn words_come_through_as_they_were_said() {
        for said in [word(None, None), word(Some(7), None), word(None, Some(u64::MAX)), word(Some(1), Some(2))] {
            assert_eq!(Word::from_bytes(said.to_bytes()), said);
        }
        assert_eq!(Word::from_bytes(word(Some(0), None).to_bytes()), word(Some(1), None), "no moment means none");
    }

    #[test]
    fn it_acts_when_the_last_word_has_run_out_and_not_before() {
        let mut watch = Watch::default();
        assert_eq!(watch.duty(Moment(5)), Duty::Wait(None), "nothing was said yet");
        watch.hear(word(Some(100), None));
        assert_eq!(watch.duty(Moment(40)), Duty::Wait(Some(Millis(60))));
        watch.hear(word(Some(200), None));
        assert_eq!(watch.duty(Moment(150)), Duty::Wait(Some(Millis(50))), "renewed");
        assert_eq!(watch.duty(Moment(200)), Duty::Fence);
        watch.fenced();
        assert_eq!(watch.duty(Moment(300)), Duty::Wait(None), "once");
        watch.hear(word(Some(250), None));
        assert_eq!(watch.duty(Moment(300)), Duty::Fence, "a right that has ended already");
        watch.hear(word(None, None));
        assert_eq!(watch.duty(Moment(300)), Duty::Wait(None), "needed no more");
    }

    #[test]
    fn it_outlives_its_keeper_only_for_its_duty() {
        let mut idle = Watch::default();
        idle.orphaned();
        assert_eq!(idle.duty(Moment(1)), Duty::End);
        let mut armed = Watch::default();
        armed.hear(word(Some(100), Some(90)));
        armed.orphaned();
        assert_eq!(armed.duty(Moment(50)), Duty::Wait(Some(Millis(40))));
        assert_eq!(armed.duty(Moment(120)), Duty::DropAddress, "the address before the server");
        armed.dropped();
        assert_eq!(armed.duty(Moment(120)), Duty::Fence);
        armed.fenced();
        assert_eq!(armed.duty(Moment(120)), Duty::End);
    }
}
