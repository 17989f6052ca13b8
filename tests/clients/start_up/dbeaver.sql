-- What DBeaver asks after connecting, and when a table is opened in its tree.
-- `:residents` and `:community` stand for the oids that it has read before. Above a statement: how many rows it has
-- to have (`rows: some`, `none`, `any`, or a number) and what has to be in them (`has:`) or must not (`lacks:`).

-- rows: any
SET extra_float_digits = 3;

-- rows: any
SET application_name = 'DBeaver 24.2.0 - Main <hub>';

-- rows: 1
-- has: PostgreSQL 16
SELECT version();

-- rows: 1
-- has: health-analyst
SELECT current_schema(), session_user;

-- rows: 1
SHOW search_path;

-- rows: 1
-- has: hub
SELECT db.oid,db.* FROM pg_catalog.pg_database db WHERE datallowconn AND NOT datistemplate OR db.datname = 'hub' ORDER BY db.datname;

-- rows: 1
-- has: on
select * from pg_catalog.pg_settings where name='standard_conforming_strings';

-- rows: any
select string_agg(word, ',') from pg_catalog.pg_get_keywords() where word <> ALL ('{a,abs,absolute,action}'::text[]);

-- rows: some
-- has: community
-- lacks: nobody
SELECT n.oid,n.*,d.description FROM pg_catalog.pg_namespace n
LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=n.oid AND d.objsubid=0 AND d.classoid='pg_namespace'::regclass
 ORDER BY nspname;

-- rows: some
-- has: health-analyst
-- lacks: cdc-epidemiologist
SELECT a.oid,a.* FROM pg_catalog.pg_roles a ORDER BY a.rolname;

-- rows: some
-- has: timestamptz
SELECT t.oid,t.*,c.relkind,format_type(nullif(t.typbasetype, 0), t.typtypmod) as base_type_name, d.description
FROM pg_catalog.pg_type t
LEFT OUTER JOIN pg_catalog.pg_type et ON et.oid=t.typelem
LEFT OUTER JOIN pg_catalog.pg_class c ON c.oid=t.typrelid
LEFT OUTER JOIN pg_catalog.pg_description d ON t.oid=d.objoid
WHERE t.typname IS NOT NULL
AND (c.relkind IS NULL OR c.relkind = 'c') AND (et.typcategory IS NULL OR et.typcategory <> 'C');

-- rows: 2
-- has: residents
-- lacks: remark
SELECT c.oid,c.*,d.description,pg_catalog.pg_get_expr(c.relpartbound, c.oid) as partition_expr,  pg_catalog.pg_get_partkeydef(c.oid) as partition_key
FROM pg_catalog.pg_class c
LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=c.oid AND d.objsubid=0 AND d.classoid='pg_class'::regclass
WHERE c.relnamespace=:community AND c.relkind not in ('i','I','c');

-- rows: 2
select c.oid,pg_catalog.pg_total_relation_size(c.oid) as total_rel_size,pg_catalog.pg_relation_size(c.oid) as rel_size
FROM pg_class c
WHERE c.relnamespace=:community;

-- rows: 9
-- has: household_id
-- lacks: phone
SELECT c.relname,a.*,pg_catalog.pg_get_expr(ad.adbin, ad.adrelid, true) as def_value,dsc.description,dep.objid
FROM pg_catalog.pg_attribute a
INNER JOIN pg_catalog.pg_class c ON (a.attrelid=c.oid)
LEFT OUTER JOIN pg_catalog.pg_attrdef ad ON (a.attrelid=ad.adrelid AND a.attnum = ad.adnum)
LEFT OUTER JOIN pg_catalog.pg_description dsc ON (c.oid=dsc.objoid AND a.attnum = dsc.objsubid)
LEFT OUTER JOIN pg_depend dep on dep.refobjid = a.attrelid AND dep.deptype = 'i' and dep.refobjsubid = a.attnum and dep.classid = dep.refclassid
WHERE NOT a.attisdropped AND a.attnum > 0 AND c.relkind not in ('i','I','c') AND c.oid=:residents ORDER BY a.attnum;

-- rows: any
SELECT c.oid,c.*,t.relname as tabrelname,rt.relnamespace as refnamespace,d.description, null as consrc_copy
FROM pg_catalog.pg_constraint c
INNER JOIN pg_catalog.pg_class t ON t.oid=c.conrelid
LEFT OUTER JOIN pg_catalog.pg_class rt ON rt.oid=c.confrelid
LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=c.oid AND d.objsubid=0 AND d.classoid='pg_constraint'::regclass
WHERE c.conrelid=:residents
ORDER BY c.oid;

-- rows: none
SELECT i.*,i.indkey as keys,c.relname,c.relnamespace,c.relam,c.reltablespace,tc.relname as tabrelname,dsc.description,
pg_catalog.pg_get_expr(i.indpred, i.indrelid) as pred_expr,pg_catalog.pg_get_expr(i.indexprs, i.indrelid, true) as expr,
pg_catalog.pg_relation_size(i.indexrelid) as index_rel_size,pg_catalog.pg_stat_get_numscans(i.indexrelid) as index_num_scans
FROM pg_catalog.pg_index i
INNER JOIN pg_catalog.pg_class c ON c.oid=i.indexrelid
INNER JOIN pg_catalog.pg_class tc ON tc.oid=i.indrelid
LEFT OUTER JOIN pg_catalog.pg_description dsc ON i.indexrelid=dsc.objoid
WHERE i.indrelid=:residents ORDER BY tabrelname, c.relname;

-- rows: none
SELECT x.oid,x.*,p.* FROM pg_catalog.pg_trigger x
LEFT OUTER JOIN pg_catalog.pg_proc p ON p.oid=x.tgfoid WHERE x.tgrelid=:residents AND NOT x.tgisinternal;

-- rows: none
SELECT r.oid, r.ev_class, r.rulename, pg_get_ruledef(r.oid) as definition FROM pg_catalog.pg_rewrite r WHERE r.ev_class=:residents;

-- rows: any
SELECT e.oid, e.extname, e.extversion, n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace;

-- What it asks of the data when the tab with rows is opened.
-- rows: 15
SELECT x.* FROM community.residents x LIMIT 200 OFFSET 0;

-- rows: 1
-- has: 15
SELECT count(*) FROM community.residents x;
