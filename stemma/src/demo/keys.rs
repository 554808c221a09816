//! Keys of the demo. The terminal is put into raw mode while the picture is drawn and given back on every way out.

use model::Trouble;
use std::io::Read;
use tokio::sync::mpsc;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// End with the proof.
    Quit,
    /// Kill the server of this node, counted from 0.
    Kill(usize),
    /// Kill the host of the primary; start it again when one is down.
    Host,
    /// Freeze the primary; thaw it when one is frozen.
    Freeze,
    /// Switch over.
    Switchover,
}

fn key_of(byte: u8) -> Option<Key> {
    match byte {
        // In raw mode Ctrl-C is a character, not a signal.
        b'q' | b'Q' | 3 => Some(Key::Quit),
        b'1'..=b'9' => Some(Key::Kill(usize::from(byte - b'1'))),
        b'h' | b'H' => Some(Key::Host),
        b'f' | b'F' => Some(Key::Freeze),
        b's' | b'S' => Some(Key::Switchover),
        _ => None,
    }
}

/// Listens for keys.
pub struct Keys {
    pressed: Option<mpsc::Receiver<Key>>,
}

impl Keys {
    /// Begins to listen; without a terminal nothing ever comes.
    pub fn listen(attended: bool) -> Result<Keys, Trouble> {
        if !attended || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            return Ok(Keys { pressed: None });
        }
        crossterm::terminal::enable_raw_mode()
            .map_err(|error| Trouble::os("the terminal cannot be read key by key", "use --ci").because(error))?;
        let (sender, receiver) = mpsc::channel(8);
        std::thread::spawn(move || {
            let mut byte = [0u8; 1];
            while let Ok(1) = std::io::stdin().lock().read(&mut byte) {
                if let Some(key) = key_of(byte[0])
                    && sender.blocking_send(key).is_err()
                {
                    return;
                }
            }
        });
        Ok(Keys { pressed: Some(receiver) })
    }

    /// The next key that means something.
    pub async fn next(&mut self) -> Key {
        let key = match &mut self.pressed {
            Some(receiver) => receiver.recv().await,
            None => None,
        };
        match key {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if self.pressed.is_some() {
            // Nothing better can be done on the way out than to try.
            let _ = crossterm::terminal::disable_raw_mode();
        }
    }
}

/// In raw mode a line end alone does not return to the first column.
pub fn for_raw_mode(text: &str) -> String {
    text.replace('\n', "\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_name_nodes_and_q_ends() {
        assert_eq!([b'q', 3, b'1', b'3'].map(key_of), [Key::Quit, Key::Quit, Key::Kill(0), Key::Kill(2)].map(Some));
        assert_eq!([b'h', b'f', b's'].map(key_of), [Key::Host, Key::Freeze, Key::Switchover].map(Some));
        assert_eq!([b'0', b'x', 27].map(key_of), [None; 3]);
    }
}
