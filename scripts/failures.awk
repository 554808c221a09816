# From the log of `cargo test`: what the failed tests wrote, and at the very end their names. A log of CI that is cut in
# the middle so still tells what failed and why.
#
# Cargo runs one binary after the other. A binary with failures ends with a section `failures:` that repeats what each
# failed test wrote, and another that lists their names. What a test wrote may look like both (a test may run tests), so
# a section goes on to the next binary, and the names are those of the last list. Processes that a test starts write
# between the binary's own lines, so a line `test x ... FAILED` may be torn: the list is what counts, and the lines are
# taken in addition, for a binary that died before it came to its list.

BEGIN { LINES_PER_TEST = 150 }

function note(name) {
  if (!((binary, name) in known)) { known[binary, name] = 1; failed[++failures] = name " (" binary ")" }
}

# Prints the heading of one test, and of what it wrote the end, which tells most.
function told(from, to,  first, at) {
  if (from > to) return
  print section[from]
  first = to - from > LINES_PER_TEST ? to - LINES_PER_TEST + 1 : from + 1
  if (first > from + 1) print "[" first - from - 1 " lines left out]"
  for (at = first; at <= to; at++) print section[at]
}

function end_of_binary(  at, list, from) {
  if (size > 0) {
    for (at = 1; at <= size; at++) if (section[at] == "failures:") list = at
    for (at = list + 1; at <= size && section[at] !~ /^test result: /; at++)
      if (section[at] ~ /^    [^ ]+$/) note(substr(section[at], 5))
    print "== failures in " binary
    from = 2
    for (at = 2; at < list; at++)
      if (section[at] ~ /^---- .* ----$/) { told(from, at - 1); from = at }
    told(from, list - 1)
  }
  size = 0
}

{ sub(/\r$/, "") }
/^ +Running .*\(.*\)$/ { end_of_binary(); binary = $NF; sub(/.*\//, "", binary); sub(/-[0-9a-f]+\)$/, "", binary); next }
/^ +Doc-tests / { end_of_binary(); binary = "documentation of " $2; next }
/^test .* \.\.\. FAILED$/ { name = $0; sub(/^test /, "", name); sub(/ \.\.\. FAILED$/, "", name); sub(/ - should panic$/, "", name); note(name) }
# Of a binary that died there is no more than this.
/process didn't exit successfully: .*\(signal: / { died[++deaths] = binary ":" $0 }
/^failures:$/ && size == 0 { size = 1; section[1] = $0; next }
size > 0 { section[++size] = $0 }
END {
  end_of_binary()
  for (at = 1; at <= deaths; at++) print "DIED " died[at]
  for (at = 1; at <= failures; at++) print "FAILED " failed[at]
}
