-- What Grafana's PostgreSQL data source asks: on `Save & test`, in the query builder, in a panel. The form of these
-- comments: see dbeaver.sql.

-- rows: 1
SELECT 1;

-- rows: 1
-- has: 160
SELECT current_setting('server_version_num')::int/100 as version;

-- rows: none
SELECT extversion FROM pg_extension WHERE extname = 'timescaledb';

-- rows: some
-- has: residents
SELECT
    CASE WHEN
          quote_ident(table_schema) IN (
          SELECT
            CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM
            generate_series(
              array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)
            ) as i,
            string_to_array(current_setting('search_path'),',') s
          )
      THEN quote_ident(table_name)
      ELSE quote_ident(table_schema) || '.' || quote_ident(table_name)
    END AS "table"
    FROM information_schema.tables
    WHERE quote_ident(table_schema) NOT IN ('information_schema',
                             'pg_catalog',
                             '_timescaledb_cache',
                             '_timescaledb_catalog',
                             '_timescaledb_internal',
                             '_timescaledb_config',
                             'timescaledb_information',
                             'timescaledb_experimental')
    ORDER BY CASE WHEN
          quote_ident(table_schema) IN (
          SELECT
            CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM
            generate_series(
              array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)
            ) as i,
            string_to_array(current_setting('search_path'),',') s
          ) THEN 0 ELSE 1 END, 1;

-- rows: 9
-- has: household_id
-- lacks: phone
SELECT quote_ident(column_name) AS "column", data_type AS "type"
    FROM information_schema.columns
    WHERE
      CASE WHEN array_length(parse_ident('community.residents'),1) = 2
        THEN quote_ident(table_schema) = (parse_ident('community.residents'))[1]
          AND quote_ident(table_name) = (parse_ident('community.residents'))[2]
        ELSE quote_ident(table_name) = 'community.residents'
          AND quote_ident(table_schema) IN (
          SELECT
            CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM
            generate_series(
              array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)
            ) as i,
            string_to_array(current_setting('search_path'),',') s
          )
      END;

-- A time series, as a panel's macros write it.
-- rows: 2
-- has: 8
SELECT floor(extract(epoch from "confirmed_date")/86400)*86400 AS "time", count(*) AS "cases"
FROM cdc.cases
WHERE "confirmed_date" BETWEEN '2026-01-04T16:00:00Z' AND '2026-01-06T16:00:00Z'
GROUP BY 1 ORDER BY 1;

-- rows: 16
SELECT "visited_at" AS "time", "mode" AS "metric" FROM community.visits
WHERE "visited_at" BETWEEN '2026-01-04T16:00:00Z' AND '2026-01-06T16:00:00Z' ORDER BY 1;
