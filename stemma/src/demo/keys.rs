//! Keys of the demo. The terminal is put into raw mode while the picture is drawn and given back on every way out.

use model::Trouble;
use std::io::Read;
use tokio::sync::mpsc;

/// Listens for `q` and Ctrl-C.
pub struct Keys {
    quit: Option<mpsc::Receiver<()>>,
}

impl Keys {
    /// Begins to listen; without a terminal nothing ever comes.
    pub fn listen(attended: bool) -> Result<Keys, Trouble> {
        if !attended || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            return Ok(Keys { quit: None });
        }
        crossterm::terminal::enable_raw_mode()
            .map_err(|error| Trouble::os("the terminal cannot be read key by key", "use --ci").because(error))?;
        let (sender, receiver) = mpsc::channel(1);
        std::thread::spawn(move || {
            let mut byte = [0u8; 1];
            while let Ok(1) = std::io::stdin().lock().read(&mut byte) {
                // In raw mode Ctrl-C is a character, not a signal.
                if matches!(byte[0], b'q' | b'Q' | 3) && sender.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Keys { quit: Some(receiver) })
    }

    /// Resolves when the end is asked for.
    pub async fn quit(&mut self) {
        let asked = match &mut self.quit {
            Some(receiver) => receiver.recv().await,
            None => None,
        };
        if asked.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if self.quit.is_some() {
            // Nothing better can be done on the way out than to try.
            let _ = crossterm::terminal::disable_raw_mode();
        }
    }
}

/// In raw mode a line end alone does not return to the first column.
pub fn for_raw_mode(text: &str) -> String {
    text.replace('\n', "\r\n")
}
