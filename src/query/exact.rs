//! Sums of floating point numbers that do not depend on the order of the numbers: added up without rounding,
//! and rounded once at the end. So they need no order of rows, and may be computed in parts.
//!
//! A sum is a long binary integer, of which only the part that is used is kept: every double is a whole
//! multiple of 2^-1074. (The idea is Kulisch's long accumulator; U. Kulisch, Computer Arithmetic and
//! Validity, section 8.)

use std::{mem::size_of, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, UInt64Array},
    datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type},
};
use datafusion::{
    common::{Result, ScalarValue, internal_err},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
};

/// The least exponent of a double: all are multiples of two to this power.
const LEAST: i64 = -1074;

/// A sum that has not been rounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Exact {
    /// Which digit of base 2^32 the first of `digits` is, counted from 2^-1074.
    from: usize,
    /// Digits with room for carries that have not been passed on.
    digits: Vec<i64>,
    /// Numbers added since carries were passed on last.
    pending: u32,
    /// Whether NaN, infinity and minus infinity were among the numbers.
    odd: [bool; 3],
}

impl Exact {
    fn add(&mut self, number: f64) {
        if !number.is_finite() {
            let [nan, plus, minus] = &mut self.odd;
            *if number.is_nan() {
                nan
            } else if number > 0.0 {
                plus
            } else {
                minus
            } = true;
            return;
        }
        let bits = number.to_bits();
        let (exponent, fraction) = ((bits >> 52 & 0x7ff) as usize, bits & ((1 << 52) - 1));
        let (mantissa, shift) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        if mantissa == 0 {
            return;
        }
        let wide = u128::from(mantissa) << (shift % 32);
        let sign = if number < 0.0 { -1 } else { 1 };
        let digits = self.window(shift / 32, 3);
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit += sign * i64::from((wide >> (32 * at)) as u32);
        }
        self.pending += 1;
        if self.pending == 1 << 30 {
            self.carry();
        }
    }

    fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        self.carry();
        for (mine, others) in self.odd.iter_mut().zip(other.odd) {
            *mine |= others;
        }
        let digits = self.window(other.from, other.digits.len());
        for (digit, others) in digits.iter_mut().zip(&other.digits) {
            *digit += others;
        }
        self.pending = 2;
    }

    /// The digits from the place `from` on, made where they are not there yet.
    fn window(&mut self, from: usize, count: usize) -> &mut [i64] {
        if self.digits.is_empty() {
            self.from = from;
        }
        if from < self.from {
            let missing = self.from - from;
            self.digits.splice(..0, std::iter::repeat_n(0, missing));
            self.from = from;
        }
        let at = from - self.from;
        if self.digits.len() < at + count {
            self.digits.resize(at + count, 0);
        }
        &mut self.digits[at..at + count]
    }

    /// Passes carries on: all digits but the last lie in 0..2^32, and the last has the sign.
    fn carry(&mut self) {
        self.pending = 1;
        let Some((last, others)) = self.digits.split_last_mut() else { return };
        let mut carry = 0;
        for digit in others {
            let sum = *digit + carry;
            *digit = sum & 0xffff_ffff;
            carry = sum >> 32;
        }
        *last += carry;
        // The last keeps its sign while it is small, or negative sums would grow by a digit each time.
        if last.unsigned_abs() >> 32 != 0 {
            carry = *last >> 32;
            *last &= 0xffff_ffff;
            self.digits.push(carry);
        }
    }

    /// The double that is nearest, of two the even one.
    fn rounded(&self) -> f64 {
        match self.odd {
            [true, ..] | [_, true, true] => return f64::NAN,
            [_, true, _] => return f64::INFINITY,
            [.., true] => return f64::NEG_INFINITY,
            [false, false, false] => {}
        }
        let mut sum = self.clone();
        sum.carry();
        let negative = sum.digits.last().is_some_and(|last| *last < 0);
        if negative {
            sum.digits.iter_mut().for_each(|digit| *digit = -*digit);
            sum.carry();
        }
        // The last digit may hold more than 32 bits of carries.
        while let Some(last) = sum.digits.last().copied().filter(|last| *last > 0xffff_ffff) {
            let at = sum.digits.len() - 1;
            sum.digits[at] = last & 0xffff_ffff;
            sum.digits.push(last >> 32);
        }
        let Some(top) = sum.digits.iter().rposition(|digit| *digit != 0) else { return 0.0 };
        let digit = |at: Option<usize>| at.map_or(0, |at| sum.digits[at] as u128);
        let leading = digit(Some(top)) << 64 | digit(top.checked_sub(1)) << 32 | digit(top.checked_sub(2));
        let below = sum.digits[..top.saturating_sub(2)].iter().any(|digit| *digit != 0);
        let unit = 32 * ((sum.from + top) as i64 - 2) + LEAST;
        let width = i64::from(128 - leading.leading_zeros());
        // The unit in the last place of the result: 53 digits, fewer where numbers end.
        let last = (unit + width - 53).max(LEAST);
        let (mut kept, mut last) = (leading, last);
        let drop = last - unit;
        if drop > 0 {
            let rest = leading & ((1 << drop) - 1);
            let half = 1 << (drop - 1);
            kept = leading >> drop;
            if rest > half || (rest == half && (below || kept & 1 == 1)) {
                kept += 1;
            }
        } else {
            last = unit;
            // All digits are there; trailing zeros belong to the exponent.
            while kept >> 53 != 0 {
                kept >>= 1;
                last += 1;
            }
        }
        let magnitude = scaled(kept as f64, last);
        if negative { -magnitude } else { magnitude }
    }

    fn written(&self) -> Vec<u8> {
        let mut sum = self.clone();
        sum.carry();
        let odd = sum.odd.iter().enumerate().fold(0_u8, |odd, (at, seen)| odd | u8::from(*seen) << at);
        let mut bytes = vec![odd];
        bytes.extend((sum.from as u16).to_le_bytes());
        bytes.extend(sum.digits.iter().flat_map(|digit| digit.to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let [odd, low, high, digits @ ..] = bytes else { return None };
        let digits = digits.chunks(8).map(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)));
        Some(Self {
            from: u16::from_le_bytes([*low, *high]).into(),
            digits: digits.collect::<Option<_>>()?,
            pending: 1,
            odd: [0, 1, 2].map(|at| odd >> at & 1 == 1),
        })
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.digits.capacity() * size_of::<i64>()
    }
}

/// `number` times two to the power, where the result is a double or beyond all.
fn scaled(number: f64, mut power: i64) -> f64 {
    let two_to = |power: i64| f64::from_bits(((power + 1023) as u64) << 52);
    let mut number = number;
    while power < -1000 {
        number *= two_to(-500);
        power += 500;
    }
    while power > 1000 {
        number *= two_to(500);
        power -= 500;
    }
    number * two_to(power)
}

/// `sum` or `avg` of doubles, in place of the engine's own. In no registry: only settled plans use it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ExactAggregate {
    mean: bool,
    signature: Signature,
}

const SUM: &str = "exact_sum";
const AVG: &str = "exact_avg";

/// The order-free form of an aggregate over doubles, where it has one.
pub fn form_of(aggregate: &str) -> Option<Arc<AggregateUDF>> {
    let mean = match aggregate {
        "sum" => false,
        "avg" => true,
        _ => return None,
    };
    let signature = Signature::exact(vec![DataType::Float64], Volatility::Immutable);
    Some(Arc::new(AggregateUDF::new_from_impl(ExactAggregate { mean, signature })))
}

/// Whether that is the name of an order-free form.
pub fn is_form(name: &str) -> bool {
    matches!(name, SUM | AVG)
}

impl AggregateUDFImpl for ExactAggregate {
    fn name(&self) -> &str {
        if self.mean { AVG } else { SUM }
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }
    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![
            Arc::new(Field::new(format!("{}[sum]", args.name), DataType::Binary, true)),
            Arc::new(Field::new(format!("{}[count]", args.name), DataType::UInt64, true)),
        ])
    }
    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { mean: self.mean, groups: Sums::default() }))
    }
    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }
    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { mean: self.mean, sums: Sums::default() }))
    }
}

/// Sums and how many numbers are in each.
#[derive(Debug, Default)]
struct Sums {
    sums: Vec<Exact>,
    counts: Vec<u64>,
}

impl Sums {
    fn resize(&mut self, groups: usize) {
        self.sums.resize(groups, Exact::default());
        self.counts.resize(groups, 0);
    }

    fn merge(&mut self, at: usize, sum: &[u8], count: u64) -> Result<()> {
        match Exact::read(sum) {
            Some(sum) => self.sums[at].merge(&sum),
            None => return internal_err!("a sum that cannot be read"),
        }
        self.counts[at] += count;
        Ok(())
    }

    fn take(&mut self, emit: EmitTo) -> (Vec<Exact>, Vec<u64>) {
        (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.counts))
    }

    fn size(&self) -> usize {
        self.sums.iter().map(Exact::size).sum::<usize>() + self.counts.capacity() * size_of::<u64>()
    }
}

fn value(mean: bool, sum: &Exact, count: u64) -> Option<f64> {
    match (count, mean) {
        (0, _) => None,
        (_, false) => Some(sum.rounded()),
        (count, true) => Some(sum.rounded() / count as f64),
    }
}

#[derive(Debug)]
struct Groups {
    mean: bool,
    sums: Sums,
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.sums.resize(total);
        let [values] = values else { return internal_err!("a sum has one argument") };
        for (row, (value, group)) in values.as_primitive::<Float64Type>().iter().zip(groups).enumerate() {
            let Some(value) = value else { continue };
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.sums.sums[*group].add(value);
                self.sums.counts[*group] += 1;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = self.sums.take(emit);
        let values = sums.iter().zip(counts).map(|(sum, count)| value(self.mean, sum, count));
        Ok(Arc::new(values.collect::<Float64Array>()))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = self.sums.take(emit);
        let sums = BinaryArray::from_iter_values(sums.iter().map(Exact::written));
        Ok(vec![Arc::new(sums), Arc::new(UInt64Array::from(counts))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, Array::len);
        let mut alone = Self { mean: self.mean, sums: Sums::default() };
        alone.update_batch(values, &(0..rows).collect::<Vec<_>>(), filter, rows)?;
        alone.state(EmitTo::All)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.sums.resize(total);
        let [sums, counts] = values else { return internal_err!("a sum has two parts") };
        let (sums, counts) = (sums.as_binary::<i32>(), counts.as_primitive::<UInt64Type>());
        for (row, group) in groups.iter().enumerate() {
            self.sums.merge(*group, sums.value(row), counts.value(row))?;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.sums.size()
    }
}

/// One sum, over no groups.
#[derive(Debug)]
struct One {
    mean: bool,
    groups: Sums,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.groups.resize(1);
        let [values] = values else { return internal_err!("a sum has one argument") };
        for value in values.as_primitive::<Float64Type>().iter().flatten() {
            self.groups.sums[0].add(value);
            self.groups.counts[0] += 1;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.groups.resize(1);
        Ok(ScalarValue::Float64(value(self.mean, &self.groups.sums[0], self.groups.counts[0])))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.groups.resize(1);
        Ok(vec![
            ScalarValue::Binary(Some(self.groups.sums[0].written())),
            ScalarValue::UInt64(Some(self.groups.counts[0])),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.groups.resize(1);
        let [sums, counts] = states else { return internal_err!("a sum has two parts") };
        let (sums, counts) = (sums.as_binary::<i32>(), counts.as_primitive::<UInt64Type>());
        for row in 0..sums.len() {
            self.groups.merge(0, sums.value(row), counts.value(row))?;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.groups.size()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(numbers: &[f64]) -> f64 {
        let mut exact = Exact::default();
        numbers.iter().for_each(|number| exact.add(*number));
        exact.rounded()
    }

    #[test]
    fn sums_are_rounded_once() {
        let big = 2_f64.powi(53);
        for (numbers, expected) in [
            (vec![], 0.0),
            (vec![-0.0], 0.0),
            (vec![1e16, 1.0, -1e16], 1.0),
            (vec![f64::MAX, f64::MAX, -f64::MAX], f64::MAX),
            (vec![f64::MAX, f64::MAX], f64::INFINITY),
            (vec![5e-324, 5e-324, 5e-324], 1.5e-323),
            (vec![f64::MIN_POSITIVE, -5e-324], f64::MIN_POSITIVE - 5e-324),
            (vec![1.0, 5e-324, -1.0], 5e-324),
            (vec![-1.0, 5e-324], -1.0),
            // Half way between two doubles: to the even one, and up with the least bit more.
            (vec![big, 1.0], big),
            (vec![big, 1.0, 5e-324], big + 2.0),
            (vec![big + 2.0, 1.0], big + 4.0),
            (vec![f64::INFINITY, 1.0], f64::INFINITY),
        ] {
            assert_eq!(sum(&numbers).to_bits(), expected.to_bits(), "{numbers:?}");
        }
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(sum(&[f64::NAN, 1.0]).is_nan());
    }

    #[test]
    fn negative_sums_stay_short() {
        let mut one = Exact::default();
        one.add(-1.5);
        let mut sum = Exact::default();
        for _ in 0..100_000 {
            sum.merge(&one);
        }
        assert!(sum.digits.len() < 8, "{} digits", sum.digits.len());
        assert_eq!(sum.rounded(), -150_000.0);
    }

    proptest! {
        #[test]
        fn a_sum_is_that_of_whole_numbers(
            numbers in prop::collection::vec((-(1_i64 << 52)..(1_i64 << 52), 0_u32..60), 0..200),
        ) {
            // Multiples of 2^-20 whose sum fits 128 bits.
            let doubles: Vec<f64> =
                numbers.iter().map(|(n, shift)| *n as f64 * 2_f64.powi(*shift as i32 - 20)).collect();
            let whole: i128 = numbers.iter().map(|(n, shift)| i128::from(*n) << shift).sum();
            prop_assert_eq!(sum(&doubles), whole as f64 * 2_f64.powi(-20));
        }

        #[test]
        fn order_and_parts_do_not_show(numbers in prop::collection::vec(any::<f64>(), 0..60), cut in 0_usize..60) {
            let forwards = sum(&numbers);
            let mut backwards = numbers.clone();
            backwards.reverse();
            prop_assert_eq!(forwards.to_bits(), sum(&backwards).to_bits());
            let mut parts = Exact::default();
            let (one, other) = numbers.split_at(cut.min(numbers.len()));
            for part in [other, one] {
                let mut exact = Exact::default();
                part.iter().for_each(|number| exact.add(*number));
                parts.merge(&Exact::read(&exact.written()).unwrap());
            }
            prop_assert_eq!(forwards.to_bits(), parts.rounded().to_bits());
        }
    }
}
