//! Who reaches whom, how slowly, and how often not at all.

use crate::dice::Dice;

/// The network between nodes, by index. Links have a direction.
#[derive(Clone, Debug)]
pub struct Network {
    cut: Vec<Vec<bool>>,
    /// Messages lost, in percent.
    pub loss_percent: u64,
    /// Longest one-way delay, in milliseconds.
    pub delay_max: u64,
}

impl Network {
    /// A whole network of `nodes`.
    pub fn new(nodes: usize) -> Network {
        Network { cut: vec![vec![false; nodes]; nodes], loss_percent: 0, delay_max: 3 }
    }
    /// Everything reaches everything, quickly.
    pub fn heal(&mut self) {
        *self = Network::new(self.cut.len());
    }
    /// Cuts or mends one direction.
    pub fn set(&mut self, from: usize, to: usize, cut: bool) {
        if from != to {
            self.cut[from][to] = cut;
        }
    }
    /// Whether a message would arrive, loss apart.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to]
    }
    /// The delay of one message, or `None` if it is lost.
    pub fn delay(&self, from: usize, to: usize, dice: &mut Dice) -> Option<u64> {
        if self.cut[from][to] || (from != to && dice.percent(self.loss_percent)) {
            return None;
        }
        Some(if from == to { 0 } else { dice.between(0, self.delay_max) })
    }
}
