//! What is to be sent: ranges of the buffer that was read, passed on as they are, and bytes of our own between them.

use std::io::IoSlice;
use std::ops::Range;

/// What is shorter is copied together: one piece costs the kernel less than the copy does.
const COPIED_BYTES_MAX: usize = 4 << 10;
/// Most pieces that go into one call of the system; more are copied together first.
const PIECES_MAX: usize = 32;

/// Where a piece lies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// In the buffer that was read.
    Input(Range<usize>),
    /// In our own bytes.
    Own(Range<usize>),
}

/// A list of pieces in the order of sending. Reused: clearing keeps its memory.
#[derive(Debug, Default)]
pub struct Out {
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// All of it in one place, where it is short.
    whole: Vec<u8>,
}

impl Out {
    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.own.clear();
        self.pieces.clear();
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Passes a range of the input on.
    pub fn pass(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if let Some(Piece::Input(last)) = self.pieces.last_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        self.pieces.push(Piece::Input(range));
    }

    /// Adds bytes of our own, which `fill` appends.
    pub fn add(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.own.len();
        fill(&mut self.own);
        let end = self.own.len();
        if start == end {
            return;
        }
        if let Some(Piece::Own(last)) = self.pieces.last_mut() {
            last.end = end;
            return;
        }
        self.pieces.push(Piece::Own(start..end));
    }

    fn slice<'o>(&'o self, piece: &Piece, input: &'o [u8]) -> &'o [u8] {
        match piece {
            Piece::Input(range) => &input[range.clone()],
            Piece::Own(range) => &self.own[range.clone()],
        }
    }

    /// The bytes where they are in one place, or are few enough to be brought there.
    pub fn single<'o>(&'o mut self, input: &'o [u8]) -> Option<&'o [u8]> {
        match self.pieces.as_slice() {
            [] => Some(&[]),
            [piece] => Some(self.slice(piece, input)),
            _ if self.len() <= COPIED_BYTES_MAX => {
                let mut whole = std::mem::take(&mut self.whole);
                whole.clear();
                self.copy_rest(input, 0, &mut whole);
                self.whole = whole;
                Some(&self.whole)
            }
            _ => None,
        }
    }

    /// The first pieces, for a call that takes several.
    pub fn slices<'o>(&'o self, input: &'o [u8], into: &mut Vec<IoSlice<'o>>) {
        into.extend(self.pieces.iter().take(PIECES_MAX).map(|piece| IoSlice::new(self.slice(piece, input))));
    }

    /// Appends everything behind the first `sent` bytes to `rest`.
    pub fn copy_rest(&self, input: &[u8], sent: usize, rest: &mut Vec<u8>) {
        let mut skip = sent;
        for piece in &self.pieces {
            let bytes = self.slice(piece, input);
            let from = skip.min(bytes.len());
            skip -= from;
            rest.extend_from_slice(&bytes[from..]);
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Input(range) | Piece::Own(range) => range.len(),
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_piece_and_the_rest_is_what_was_not_sent() {
        let input = b"0123456789";
        let mut out = Out::default();
        out.pass(0..2);
        out.pass(2..4);
        assert_eq!(out.single(input), Some(&b"0123"[..]));
        out.add(|own| own.extend_from_slice(b"ab"));
        out.pass(6..8);
        assert_eq!(out.len(), 8);
        assert_eq!(out.single(input), Some(&b"0123ab67"[..]));
        let mut rest = Vec::new();
        out.copy_rest(input, 5, &mut rest);
        assert_eq!(rest, b"b67");
    }
}
