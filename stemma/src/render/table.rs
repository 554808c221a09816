//! Tables aligned by hand: two spaces of indent, one gap between columns, columns dropped from the right when the
//! terminal is too narrow, the last kept one shortened.

use super::look::{Look, Tone};

/// Least width at which a shortened last column is still worth showing.
const LAST_COLUMN_MIN: usize = 8;

/// One cell: pieces of text with their colours.
#[derive(Clone, Debug, Default)]
pub struct Cell(Vec<(Tone, String)>);

impl Cell {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Cell {
        Cell(vec![(Tone::Plain, text.into())])
    }
    /// Text in a colour.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Cell {
        Cell(vec![(tone, text.into())])
    }
    /// A dash for what does not apply or is not known.
    pub fn none() -> Cell {
        Cell::plain("-")
    }
    /// Adds a piece.
    #[must_use]
    pub fn and(mut self, tone: Tone, text: impl Into<String>) -> Cell {
        self.0.push((tone, text.into()));
        self
    }
    fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }
    fn draw(&self, look: &Look, width: usize) -> String {
        let mut left = width;
        let shorten = self.width() > width;
        let mut drawn = String::new();
        for (tone, text) in &self.0 {
            let length = text.chars().count();
            if shorten && length >= left {
                let kept: String = text.chars().take(left.saturating_sub(1)).collect();
                drawn.push_str(&look.paint(*tone, &format!("{}…", kept.trim_end())));
                return drawn;
            }
            left -= length;
            drawn.push_str(&look.paint(*tone, text));
        }
        drawn
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::plain(text)
    }
}

/// A table in the making.
#[derive(Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With these column names.
    pub fn new(header: &[&'static str]) -> Table {
        Table::owned(header.iter().map(ToString::to_string).collect())
    }

    /// The same, where the names are not ours.
    pub fn owned(header: Vec<String>) -> Table {
        Table { header, rows: Vec::new() }
    }

    /// Adds a row, as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.header.len(), "a row has one cell per column");
        self.rows.push(cells);
    }

    /// The lines of the table.
    pub fn render(&self, look: &Look) -> Vec<String> {
        let widths = self.widths();
        let kept = columns_that_fit(&widths, look.width);
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        let header: Vec<Cell> = self.header.iter().map(|name| Cell::toned(Tone::Quiet, name.as_str())).collect();
        for cells in std::iter::once(&header).chain(&self.rows) {
            lines.push(line(look, cells, &kept));
        }
        lines
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.header.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].width());
                cells.chain(std::iter::once(self.header[column].len())).max().unwrap_or(0)
            })
            .collect()
    }
}

/// The widths of the columns to show, the last one possibly cut.
fn columns_that_fit(widths: &[usize], width_max: usize) -> Vec<usize> {
    let mut kept = Vec::new();
    // Indent of two; each further column costs a gap of two.
    let mut used = 2;
    for (index, width) in widths.iter().enumerate() {
        let gap = if index == 0 { 0 } else { 2 };
        let room = width_max.saturating_sub(used + gap);
        if *width <= room {
            kept.push(*width);
            used += gap + width;
            continue;
        }
        if index == 0 || (index + 1 == widths.len() && room >= LAST_COLUMN_MIN) {
            kept.push(room);
        }
        break;
    }
    kept
}

fn line(look: &Look, cells: &[Cell], widths: &[usize]) -> String {
    let mut text = String::from("  ");
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if index > 0 {
            text.push_str("  ");
        }
        text.push_str(&cell.draw(look, *width));
        if index + 1 < widths.len() {
            text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width())));
        }
    }
    look.finish(text.trim_end())
}

/// Words of `text` in lines of at most `width` columns, continued with `indent` spaces.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split([' ', '\n']) {
        let length = word.chars().count();
        if column > indent && column + length > width {
            while out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        }
        out.push_str(word);
        out.push(' ');
        column += length + 1;
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(width: usize) -> Look {
        Look { color: false, unicode: true, width, terminal: false }
    }

    #[test]
    fn narrow_terminals_lose_columns_from_the_right() {
        let mut table = Table::new(&["NODE", "ROLE", "NOTES"]);
        table.row(vec!["pg-1".into(), "primary".into(), "a note that is rather long".into()]);
        let all = |width| table.render(&look(width)).join("\n");
        assert_eq!(all(80), "  NODE  ROLE     NOTES\n  pg-1  primary  a note that is rather long");
        assert_eq!(all(30), "  NODE  ROLE     NOTES\n  pg-1  primary  a note that…");
        assert_eq!(all(20), "  NODE  ROLE\n  pg-1  primary");
    }

    #[test]
    fn long_text_is_continued_under_its_beginning() {
        assert_eq!(wrap("  next:  one two three four", 16, 9), "  next:  one two\n         three\n         four");
        assert_eq!(wrap("short", 80, 4), "short");
    }
}
