//! Statements of clients that the engine cannot run, and what is asked in their place: the few constructs of
//! PostgreSQL's that it lacks (set-returning functions in a SELECT list, subqueries that look at two rows around
//! them, system columns) stand in statements about keys, indexes and policies, of which there are none here.
//!
//! A statement is known by fragments of it, compared without regard to spaces, comments and letter case.

use std::sync::LazyLock;

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};

/// A statement that is answered by another.
struct Known {
    /// Fragments that together are in no other statement.
    has: &'static [&'static str],
    /// What is asked instead. Its columns are those of the statement.
    answer: &'static str,
}

/// A part of statements that is replaced.
struct Part {
    from: &'static str,
    to: &'static str,
}

const KNOWN: &[Known] = &[
    // psql: \d NAME, row policies. `array(select …)` within an expression, `= any` of a column.
    Known {
        has: &["select pol.polname, pol.polpermissive", "from pg_catalog.pg_policy pol"],
        answer: "SELECT NULL::text AS polname, NULL::boolean AS polpermissive, NULL::text AS array_to_string, \
                 NULL::text AS pg_get_expr, NULL::text AS pg_get_expr, NULL::text AS cmd WHERE false",
    },
    // psql: \d NAME, publications. A subquery over generate_series of a column.
    Known {
        has: &["from pg_catalog.pg_publication p", "pc.relnamespace = pn.pnnspid"],
        answer: "SELECT NULL::text AS pubname, NULL::text AS \"?column?\", NULL::text AS \"?column?\" WHERE false",
    },
    // psql: \d NAME, extended statistics.
    Known {
        has: &["pg_catalog.pg_get_statisticsobjdef_columns(oid) as columns", "stxrelid"],
        answer: "SELECT NULL::int4 AS oid, NULL::text AS stxrelid, NULL::text AS nsp, NULL::text AS stxname, \
                 NULL::text AS columns, NULL::boolean AS ndist_enabled, NULL::boolean AS deps_enabled, \
                 NULL::boolean AS mcv_enabled, NULL::int4 AS stxstattarget WHERE false",
    },
    // psql: \d NAME, indexes. Joins with commas and LEFT JOIN by columns of either side.
    Known {
        has: &["select c2.relname, i.indisprimary", "pg_catalog.pg_get_indexdef(i.indexrelid, 0, true)"],
        answer: "SELECT NULL::text AS relname, NULL::boolean AS indisprimary, NULL::boolean AS indisunique, \
                 NULL::boolean AS indisclustered, NULL::boolean AS indisvalid, NULL::text AS pg_get_indexdef, \
                 NULL::text AS pg_get_constraintdef, NULL::text AS contype, NULL::boolean AS condeferrable, \
                 NULL::boolean AS condeferred, NULL::boolean AS indisreplident, NULL::int4 AS reltablespace \
                 WHERE false",
    },
    // psql: \dd, descriptions of what has no other list. The system column tableoid.
    Known {
        has: &["pgc.tableoid as tableoid"],
        answer: "SELECT NULL::text AS \"Schema\", NULL::text AS \"Name\", NULL::text AS \"Object\", \
                 NULL::text AS \"Description\" WHERE false",
    },
    // psql: \dL, languages. The same.
    Known {
        has: &["from pg_catalog.pg_language l", "d.classoid = l.tableoid"],
        answer: "SELECT NULL::text AS \"Name\", NULL::text AS \"Owner\", NULL::boolean AS \"Trusted\", \
                 NULL::text AS \"Description\" WHERE false",
    },
    // psql: \dp and \z, privileges: this caller may read what it sees.
    Known {
        has: &["as \"column privileges\"", "as \"policies\"", "from pg_catalog.pg_class c"],
        answer: "SELECT n.nspname AS \"Schema\", c.relname AS \"Name\", 'table' AS \"Type\", \
                 array_to_string(c.relacl, ',') AS \"Access privileges\", NULL::text AS \"Column privileges\", \
                 NULL::text AS \"Policies\" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname <> 'pg_catalog' AND n.nspname <> 'information_schema' ORDER BY 1, 2",
    },
    // psql: \dy, event triggers. A subquery over unnest of a column.
    Known {
        has: &["from pg_catalog.pg_event_trigger e", "evtname as \"name\""],
        answer: "SELECT NULL::text AS \"Name\", NULL::text AS \"Event\", NULL::text AS \"Owner\", \
                 NULL::text AS \"Enabled\", NULL::text AS \"Function\", NULL::text AS \"Tags\" WHERE false",
    },
    // asyncpg: types it has not met. A recursive query over subqueries; here, the types and those of their elements.
    // It reads "char" as bytes, and knows of no arrays before but those of oids and of texts.
    Known {
        has: &["with recursive typeinfo_tree", "any($1::oid[])"],
        answer: "SELECT t.oid AS oid, 'pg_catalog' AS ns, t.typname AS name, CAST(t.typtype AS bytea) AS kind, \
                 NULL::int4 AS basetype, t.typelem AS elemtype, CAST(e.typdelim AS bytea) AS elemdelim, \
                 r.rngsubtype AS range_subtype, NULL::text[] AS attrtypoids, NULL::text[] AS attrnames, \
                 CASE WHEN t.oid = ANY ($1::oid[]) THEN 0 ELSE 1 END AS depth, NULL::text AS basetype_name, \
                 e.oid::regtype::text AS elemtype_name, r.rngsubtype::regtype::text AS range_subtype_name \
                 FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typlen = -1 \
                 LEFT JOIN pg_range r ON r.rngtypid = t.oid \
                 WHERE t.oid = ANY ($1::oid[]) OR t.oid IN (SELECT a.typelem FROM pg_type a \
                 WHERE a.oid = ANY ($1::oid[]) AND a.typlen = -1) ORDER BY depth DESC",
    },
    // adbc-driver-postgresql: GetObjects, constraints. unnest of columns.
    Known {
        has: &["with fk_unnest as", "other_constraints"],
        answer: "SELECT NULL::text AS conname, NULL::text AS contype, NULL::text[] AS colnames, NULL::text AS fschema, \
                 NULL::text AS ftable, NULL::text[] AS fcolnames WHERE false",
    },
    // SQLAlchemy: get_pk_constraint and get_unique_constraints. unnest and generate_subscripts of columns.
    Known {
        has: &["array_agg(cast(attr.attname as text) order by attr.ord) as cols", "attr.conname"],
        answer: "SELECT NULL::int4 AS conrelid, NULL::text[] AS cols, NULL::text AS conname, \
                 NULL::text AS description, NULL::int2 AS indnkeyatts, \
                 NULL::boolean AS indnullsnotdistinct WHERE false",
    },
    // SQLAlchemy: get_indexes. The same.
    Known {
        has: &["idx_cols.elements", "idx_cols.elements_is_expr", "pg_catalog.pg_index.indrelid"],
        answer: "SELECT NULL::int4 AS indrelid, NULL::text AS relname, NULL::boolean AS indisunique, \
                 NULL::boolean AS indisvalid, NULL::boolean AS has_constraint, NULL::int2[] AS indoption, \
                 NULL::text[] AS reloptions, NULL::int4 AS relam, NULL::text AS filter_definition, \
                 NULL::int2 AS indnkeyatts, NULL::boolean AS indnullsnotdistinct, NULL::text[] AS elements, \
                 NULL::boolean[] AS elements_is_expr, NULL::int8[] AS elements_opclass WHERE false",
    },
    // pgjdbc: whether rows of an answer can be updated. The composite type of information_schema._pg_expandarray.
    Known {
        has: &["information_schema._pg_expandarray(i.indkey)", "result.is_not_null"],
        answer: "SELECT NULL::text AS table_cat, NULL::text AS table_schem, NULL::text AS table_name, \
                 NULL::text AS column_name, NULL::int4 AS key_seq, NULL::text AS pk_name, \
                 NULL::boolean AS is_not_null WHERE false",
    },
    // pgjdbc from 42.7 on: getPrimaryKeys. The same.
    Known {
        has: &["information_schema._pg_expandarray(con.conkey)", "result.pk_name"],
        answer: "SELECT NULL::text AS table_cat, NULL::text AS table_schem, NULL::text AS table_name, \
                 NULL::text AS column_name, NULL::int4 AS key_seq, NULL::text AS pk_name WHERE false",
    },
    // pgjdbc before: getPrimaryKeys. The same.
    Known {
        has: &["information_schema._pg_expandarray(i.indkey)", "result.pk_name"],
        answer: "SELECT NULL::text AS table_cat, NULL::text AS table_schem, NULL::text AS table_name, \
                 NULL::text AS column_name, NULL::int4 AS key_seq, NULL::text AS pk_name WHERE false",
    },
    // pgjdbc from 42.7 on: getIndexInfo. The same.
    Known {
        has: &["information_schema._pg_expandarray(i.indkey)", "tmp.index_name", "tmp.remarks"],
        answer: "SELECT NULL::text AS table_cat, NULL::text AS table_schem, NULL::text AS table_name, \
                 NULL::boolean AS non_unique, NULL::text AS index_qualifier, NULL::text AS index_name, \
                 NULL::int2 AS type, NULL::int4 AS ordinal_position, NULL::text AS column_name, \
                 NULL::text AS asc_or_desc, NULL::float4 AS cardinality, NULL::int4 AS pages, \
                 NULL::text AS filter_condition, NULL::text AS remarks WHERE false",
    },
    // pgjdbc before: getIndexInfo. The same.
    Known {
        has: &["information_schema._pg_expandarray(i.indkey)", "tmp.ordinal_position", "tmp.index_name"],
        answer: "SELECT NULL::text AS table_cat, NULL::text AS table_schem, NULL::text AS table_name, \
                 NULL::boolean AS non_unique, NULL::text AS index_qualifier, NULL::text AS index_name, \
                 NULL::int2 AS type, NULL::int4 AS ordinal_position, NULL::text AS column_name, \
                 NULL::text AS asc_or_desc, NULL::float4 AS cardinality, NULL::int4 AS pages, \
                 NULL::text AS filter_condition WHERE false",
    },
    // pgjdbc: getBestRowIdentifier. The same.
    Known {
        has: &["select a.attname, a.atttypid, atttypmod", "information_schema._pg_expandarray(i.indkey)"],
        answer: "SELECT NULL::text AS attname, NULL::int4 AS atttypid, NULL::int4 AS atttypmod WHERE false",
    },
    // pgjdbc: getUDTs. A subquery with a branch for every type of the server.
    Known {
        has: &["from pg_type base_type where base_type.oid = t.typbasetype"],
        answer: "SELECT NULL::text AS type_cat, NULL::text AS type_schem, NULL::text AS type_name, \
                 NULL::text AS class_name, NULL::int4 AS data_type, NULL::text AS remarks, NULL::int4 AS base_type \
                 WHERE false",
    },
    // pgjdbc: getSQLKeywords. The words PostgreSQL has beside the standard's.
    Known {
        has: &["string_agg(word, ',')", "from pg_catalog.pg_get_keywords()"],
        answer: "SELECT 'analyse,analyze,ilike,isnull,limit,notnull,offset,returning,verbose' AS string_agg",
    },
    // psqlodbc: SQLForeignKeys. generate_series in a SELECT list.
    Known {
        has: &["as \"pktable_cat\"", "as \"fktable_cat\"", "generate_series(array_lower(conkey, 1)"],
        answer: "SELECT NULL::text AS \"PKTABLE_CAT\", NULL::text AS \"PKTABLE_SCHEM\", \
                 NULL::text AS \"PKTABLE_NAME\", NULL::text AS \"PKCOLUMN_NAME\", NULL::text AS \"FKTABLE_CAT\", \
                 NULL::text AS \"FKTABLE_SCHEM\", NULL::text AS \"FKTABLE_NAME\", NULL::text AS \"FKCOLUMN_NAME\", \
                 NULL::int2 AS \"KEY_SEQ\", NULL::int2 AS \"UPDATE_RULE\", NULL::int2 AS \"DELETE_RULE\", NULL::text AS \"FK_NAME\", \
                 NULL::text AS \"PK_NAME\", NULL::int2 AS \"DEFERRABILITY\" WHERE false",
    },
    // pgcli: foreign keys for completion. unnest of a subquery.
    Known {
        has: &["as parentschema", "as childcolumn", "from pg_catalog.pg_constraint fk"],
        answer: "SELECT NULL::text AS parentschema, NULL::text AS parenttable, NULL::text AS parentcolumn, \
                 NULL::text AS childschema, NULL::text AS childtable, NULL::text AS childcolumn WHERE false",
    },
];

const PARTS: &[Part] = &[
    // psql: \d+ NAME, options of a table and of what it keeps elsewhere.
    Part {
        from: "pg_catalog.array_to_string(c.reloptions || array(select 'toast.' || x from \
               pg_catalog.unnest(tc.reloptions) x), ', ')",
        to: "''",
    },
    // psql: \dT; pgjdbc: getTypeInfo. Types that are rows of tables are not listed here.
    Part {
        from: "(t.typrelid = 0 or (select c.relkind = 'c' from pg_catalog.pg_class c where c.oid = t.typrelid))",
        to: "t.typrelid = 0",
    },
    // adbc-driver-postgresql: types at connecting. Functions are names here, not numbers.
    Part { from: "(typreceive != 0 or typsend != 0)", to: "true" },
    // pgjdbc: getSchemas. Nobody has a schema of temporary tables.
    Part { from: "replace((pg_catalog.current_schemas(true))[1], 'pg_temp_', 'pg_toast_temp_')", to: "''" },
    // pgjdbc: types it has not met, in the order of the search path.
    Part {
        from: "left join (select ns.oid as nspoid, ns.nspname, r.r from pg_namespace as ns join (select s.r, \
               (current_schemas(false))[s.r] as nspname from generate_series(1, \
               array_upper(current_schemas(false), 1)) as s(r)) as r using (nspname)) as sp \
               on sp.nspoid = typnamespace",
        to: "",
    },
    Part { from: "order by sp.r, pg_type.oid desc", to: "order by pg_type.oid desc" },
    // psqlodbc: SQLPrimaryKeys. Text compared with a truth value.
    Part { from: "i.indisprimary = 't'", to: "i.indisprimary" },
    // psycopg 3: composite types.
    Part { from: "coalesce(a.fnames, '{}')", to: "a.fnames" },
    Part { from: "coalesce(a.ftypes, '{}')", to: "a.ftypes" },
    // DBeaver: sizes of tables. The name of a schema compared with an object id.
    Part { from: "c.relnamespace = 'public'", to: "c.relnamespace = 2200" },
    // Grafana: the schemas of the search path.
    Part {
        from: "select case when trim(s[i]) = '\"$user\"' then user else trim(s[i]) end from \
               generate_series(array_lower(string_to_array(current_setting('search_path'),','),1), \
               array_upper(string_to_array(current_setting('search_path'),','),1)) as i, \
               string_to_array(current_setting('search_path'),',') s",
        to: "'public'",
    },
];

/// The fragments of [`KNOWN`] and [`PARTS`] as statements are compared with them.
struct Compared {
    known: Vec<(Vec<String>, &'static str)>,
    parts: Vec<(String, &'static str)>,
}

static COMPARED: LazyLock<Compared> = LazyLock::new(|| Compared {
    known: KNOWN.iter().map(|known| (known.has.iter().filter_map(|has| spaced(has)).collect(), known.answer)).collect(),
    parts: PARTS.iter().filter_map(|part| Some((spaced(part.from)?, part.to))).collect(),
});

/// The statement to ask in place of this one, where there is one.
pub(super) fn instead(sql: &str) -> Option<String> {
    let spaced = spaced(sql)?;
    // Names of columns keep their case in the statement; fragments are written without.
    let folded = spaced.to_lowercase();
    let known = COMPARED.known.iter().find(|(has, _)| has.iter().all(|fragment| folded.contains(fragment.as_str())));
    if let Some((_, answer)) = known {
        return Some((*answer).to_owned());
    }
    let mut changed = spaced.clone();
    for (from, to) in &COMPARED.parts {
        if changed.contains(from.as_str()) {
            changed = changed.replace(from.as_str(), to);
        }
    }
    (changed != spaced).then_some(changed)
}

/// The tokens of a statement with one space between them, words that are not quoted in lower case. It reads as the
/// statement itself.
fn spaced(sql: &str) -> Option<String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize().ok()?;
    let word = |token: &Token| match token {
        Token::Whitespace(_) | Token::EOF => None,
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_lowercase()),
        Token::EscapedStringLiteral(text) => Some(format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))),
        token => Some(token.to_string()),
    };
    let spaced = tokens.iter().filter_map(word).collect::<Vec<_>>().join(" ");
    Some(spaced.trim_end_matches([' ', ';']).to_owned())
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    #[test]
    fn every_fragment_and_answer_can_be_read() {
        assert_eq!(COMPARED.parts.len(), PARTS.len());
        for (known, (has, _)) in KNOWN.iter().zip(&COMPARED.known) {
            assert_eq!(known.has.len(), has.len());
            Parser::parse_sql(&PostgreSqlDialect {}, known.answer).expect(known.answer);
        }
    }

    #[test]
    fn statements_are_known_whatever_their_spacing() {
        let sql = "SELECT oid, typname\n FROM pg_catalog.pg_type -- types\n \
                   WHERE (typreceive  != 0 OR typsend != 0) AND typtype != 'R'";
        let instead = instead(sql).expect("it is known");
        assert_eq!(instead, "select oid , typname from pg_catalog . pg_type where true and typtype <> 'R'");
        assert!(super::instead("SELECT pol.polname,pol.polpermissive, 1 FROM pg_catalog.pg_policy pol").is_some());
        assert_eq!(super::instead("SELECT 1"), None);
    }

    #[test]
    fn text_stays_as_it_was_written() {
        let spaced = spaced("SELECT 'It''s', E'a\\nb\\'', \"Q\"\"q\", $1").expect("tokens");
        assert!(Parser::parse_sql(&PostgreSqlDialect {}, &spaced).is_ok(), "{spaced}");
        assert!(spaced.starts_with("select 'It''s' , E'a\nb\\''"), "{spaced}");
    }
}
