#!/bin/sh
# The words that may follow on a command line of palimpsest. Arguments: the table of words, and the line up to the cursor.
# Prints one word a line; a line of a tab alone asks the shell for names of files. The same for every shell.
PALIMPSEST_LINE=$2
export PALIMPSEST_LINE
own_options() {
    # Folders of a person's own: ./palimpsest, and those that hydra.searchpath names on the line.
    named=$(printf '%s\n' "$PALIMPSEST_LINE" | sed -n 's/.*hydra\.searchpath=//p' | tr -d "[]'\"" | tr ', ' '[\n*]' |
        sed -n 's|^file://||p')
    printf 'palimpsest\n%s\n' "$named" | while IFS= read -r folder; do
        for file in "$folder"/*/*.yaml; do
            [ -f "$file" ] || continue
            group=${file%/*}
            option=${file##*/}
            printf 'v\t%s=%s\n' "${group##*/}" "${option%.yaml}"
        done
    done
}
{
    printf '%s\n' "$1"
    own_options
} | awk -F '\t' '
function emit(word) {
    if (index(word, current) == 1 && !(word in seen)) { seen[word] = 1; print word; count++ }
}
function in_schema(key,    m) {
    for (m in mappings)
        if (index(key, m ".") == 1) {
            rest = substr(key, length(m) + 2); at = index(rest, ".")
            if (at) return m ".NAME." substr(rest, at + 1)
        }
    return key
}
function values(key,    i, wanted) {
    wanted = in_schema(key) "="
    for (i = 1; i <= num_values; i++)
        if (index(value[i], wanted) == 1) emit(sign key "=" substr(value[i], length(wanted) + 1))
    if (!count && (in_schema(key) in is_path)) print "\t"
}
function names(mapping,    i, j, list, found, typed) {
    found = split(mappings[mapping], list, " ")
    for (i = 1; i <= found; i++) emit(sign mapping "." list[i] ".")
    for (j = 2; j < num_words; j++)
        if (index(word[j], mapping ".") == 1) {
            typed = substr(word[j], length(mapping) + 2)
            if (match(typed, /[.=]/)) emit(sign mapping "." substr(typed, 1, RSTART - 1) ".")
        }
}
function keys(end,    i, m, name, known, rest, at) {
    for (m in mappings)
        if (index(bare, m ".") == 1) {
            rest = substr(bare, length(m) + 2); at = index(rest, ".")
            if (!at) { names(m); return }
            name = substr(rest, 1, at - 1)
            mapping = m
        }
    for (i = 1; i <= num_keys; i++) {
        known = key[i]
        if (name != "" && index(known, mapping ".NAME.") == 1)
            known = mapping "." name "." substr(known, length(mapping ".NAME.") + 1)
        if (index(known, bare) != 1 || known ~ /[.]NAME$/) continue
        rest = substr(known, length(bare) + 1); at = index(rest, ".")
        emit(sign (at ? bare substr(rest, 1, at) : known end))
    }
}
$1 == "c" { command[++num_commands] = $2 }
$1 == "o" { option[++num_options] = $2; of[num_options] = $3 }
$1 == "s" { second[++num_second] = $2; after[num_second] = $3 }
$1 == "k" { key[++num_keys] = $2 }
$1 == "v" { value[++num_values] = $2 }
$1 == "f" { is_path[$2] = 1 }
$1 == "n" { mappings[$2] = $3 }
END {
    num_words = split(ENVIRON["PALIMPSEST_LINE"], word, /[ \t]+/)
    current = word[num_words]; before = word[num_words - 1]
    verb = (num_words > 2 && word[2] !~ /[=+~-]/) ? word[2] : "train"
    if (num_words == 2) for (i = 1; i <= num_commands; i++) emit(command[i])
    if (num_words == 2 && (current == "" || count)) exit
    if (before == "--config" || verb == "status") { print "\t"; exit }
    if (current ~ /^-/) {
        for (i = 1; i <= num_options; i++) if (of[i] == "" || of[i] == verb) emit(option[i])
        exit
    }
    if (num_words == 3) for (i = 1; i <= num_second; i++) if (after[i] == verb) emit(second[i])
    if (verb ~ /^(completion|schema|replay)$/ && num_words == 3 || verb == "init") exit
    sign = ""; bare = current
    if (match(bare, /^[+~]+/)) { sign = substr(bare, 1, RLENGTH); bare = substr(bare, RLENGTH + 1) }
    at = index(bare, "=")
    if (at) values(substr(bare, 1, at - 1))
    else keys(verb == "explain" && num_words == 3 ? "" : "=")
}
'
